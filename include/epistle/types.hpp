// The vocabulary that every other header shares: element types, layouts, modes.
#pragma once

#include <cstdint>
#include <string_view>

#if defined(__CUDACC__)
#define EPISTLE_HOST_DEVICE __host__ __device__
#else
#define EPISTLE_HOST_DEVICE
#endif

namespace epistle {

/// Element type of a payload.
enum class DType : std::int32_t {
  kBf16,
  kFp16,
  kFp32,
  kFp8E4m3,  ///< with one fp32 scale per 128 elements of a row (the last block may be shorter)
  kRaw,      ///< opaque bytes with opaque scale bytes: dispatched, never summed
};

/// Elements that share one scale in an fp8 payload.
inline constexpr std::int64_t kScaleBlockElements = 128;

/// A payload row must be a multiple of this many bytes (the widest vector load of the GPU path).
inline constexpr std::int64_t kRowAlignmentBytes = 16;

/// Bytes of one element; 1 for kRaw.
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t dtype_bytes(DType dtype) noexcept {
  return dtype == DType::kFp32 ? 4 : (dtype == DType::kBf16 || dtype == DType::kFp16) ? 2 : 1;
}

/// How received rows are arranged.
enum class OutputLayout : std::int32_t {
  kTokenMajor,   ///< each received token once, ordered by (src_rank, src_token), with its list of local experts
  kExpertMajor,  ///< one row per (token, local expert), grouped by expert, groups padded to `alignment` rows;
                 ///< inside a group ordered by (src_rank, src_token)
  kExpertSlots,  ///< a block of `capacity_rows` rows per local expert, filled from its start, plus counts
};

/// How receive buffers are sized.
enum class Sizing : std::int32_t {
  kExact,     ///< the host learns the counts; buffers grow to what is needed, to the page
  kCapacity,  ///< static shapes; what does not fit is counted and reported
};

/// What happens to rows beyond the capacity.
enum class OverflowPolicy : std::int32_t {
  kError,  ///< every rank throws kCapacityExceeded before the first payload byte moves
  kDrop,   ///< the last rows in output order are left out, counted per rank and per expert
};

/// Where combine sums the expert outputs of a token; see dispatcher.hpp for the exact order of additions.
enum class CombineMode : std::int32_t {
  kHierarchical,  ///< per rank first (rounded to the payload type), then over ranks
  kFlat,          ///< once, at the source, in top-k order
};

enum class GroupKind : std::int32_t { kThreads, kProcesses };

[[nodiscard]] std::string_view to_string(DType dtype) noexcept;
[[nodiscard]] std::string_view to_string(OutputLayout layout) noexcept;
[[nodiscard]] std::string_view to_string(Sizing sizing) noexcept;
[[nodiscard]] std::string_view to_string(OverflowPolicy policy) noexcept;
[[nodiscard]] std::string_view to_string(CombineMode mode) noexcept;
[[nodiscard]] std::string_view to_string(GroupKind kind) noexcept;

}  // namespace epistle
