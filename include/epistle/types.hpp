// The vocabulary that every other header shares: element types, layouts, modes.
#pragma once

#include <cstdint>
#include <string_view>

#include "epistle/export.hpp"

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

/// What the scales of a quantised row are.
enum class ScaleFormat : std::int32_t {
  kFp32,     ///< one fp32 per 128 elements
  kUe8m0,    ///< one exponent byte per 128 elements: 2^(byte - 127)
  kUe8m0x4,  ///< 32-bit words of four exponent bytes, the first in the lowest byte; zero where there is none
  kBytes,    ///< opaque bytes, for rows of kRaw
};

/// Bytes of one element of scales.
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t scale_element_bytes(ScaleFormat format) noexcept {
  return format == ScaleFormat::kFp32 || format == ScaleFormat::kUe8m0x4 ? 4 : 1;
}

/// How the scales of received rows lie.
enum class ScaleOrder : std::int32_t {
  kRows,     ///< the scales of a row one behind the other
  kColumns,  ///< one scale (or word of four exponents) of all rows one behind the other, as DeepGEMM reads them
};

/// No expert: the entry was dropped or is padding.
inline constexpr std::int32_t kNoExpert = -1;

enum class IdType : std::int32_t { kInt32, kInt64 };

/// Where a dispatcher's rows lie.
enum class Device : std::int32_t { kHost, kCuda };

/// How received rows are arranged; see the structs of these names in config.hpp.
enum class OutputLayout : std::int32_t { kTokenMajor, kExpertMajor, kExpertBlocks };

/// How receive buffers are sized; see Exact and Capacity in config.hpp.
enum class SizingMode : std::int32_t { kExact, kCapacity };

/// What happens to rows beyond the capacity.
enum class OverflowPolicy : std::int32_t {
  kError,  ///< every rank throws kCapacityExceeded before the first payload byte moves
  kDrop,   ///< the last rows in output order are left out, counted per rank and per expert
};

/// In which order combine adds the expert outputs of a token; see dispatcher.hpp for the exact additions.
enum class SumOrder : std::int32_t {
  kHierarchical,  ///< per rank first (rounded to the output type), then over ranks, ascending
  kFlat,          ///< once, at the source, in top-k order: of expert rows the same bits for any number of ranks
  kDeepEpV2,      ///< per rank first, then over ranks in the order of their last place in the token's top-k
  kDomains,       ///< per rank first, then per domain (rounded again), then over domains, ascending
};

enum class GroupKind : std::int32_t { kThreads, kProcesses };

[[nodiscard]] EPISTLE_API std::string_view to_string(DType dtype) noexcept;
[[nodiscard]] EPISTLE_API std::string_view to_string(OutputLayout layout) noexcept;
[[nodiscard]] EPISTLE_API std::string_view to_string(SizingMode sizing) noexcept;
[[nodiscard]] EPISTLE_API std::string_view to_string(OverflowPolicy policy) noexcept;
[[nodiscard]] EPISTLE_API std::string_view to_string(SumOrder order) noexcept;
[[nodiscard]] EPISTLE_API std::string_view to_string(GroupKind kind) noexcept;
[[nodiscard]] EPISTLE_API std::string_view to_string(Device device) noexcept;
[[nodiscard]] EPISTLE_API std::string_view to_string(ScaleFormat format) noexcept;
[[nodiscard]] EPISTLE_API std::string_view to_string(ScaleOrder order) noexcept;

}  // namespace epistle
