// Lines: how rows of few tokens cross. A line is 128 bytes that one warp stores at once, 120 of them payload and 8 a
// flag that says which call they belong to. It arrives whole, so whoever sees the flag has the payload: no fence, no
// signal behind the rows. Plain values, usable from host and device code.
//
// A row is cut into units of 16 bytes. Two lines carry 15 of them:
//
//   line 2p      units 15p to 15p + 6     first half of unit 15p + 14     flag
//   line 2p + 1  units 15p + 7 to 15p + 13   its second half              flag
//
// so that every lane of the warp moves 16 aligned bytes, or 8. A row that becomes fp8 on its way has 7 units in a line,
// and a scale where the half unit would be: 8 lines carry 7 blocks of 128 elements, and their scales.
#pragma once

#include <cstdint>

#include "layout/dispatch_layout.hpp"

namespace epistle::cuda {

inline constexpr std::int64_t kLineBytes = 128;
inline constexpr std::int64_t kLinePayloadBytes = 120;
inline constexpr std::int32_t kUnitBytes = 16;
inline constexpr std::int32_t kPairUnits = 15;  ///< in two lines
inline constexpr std::int32_t kBlockUnits = 7;  ///< in a line, where it also has a scale
/// Lines that a warp moves at once.
inline constexpr std::int32_t kChunkLines = 8;
/// The same in a combine of many chunks for every warp: what it does for each besides is half as much.
inline constexpr std::int32_t kWideChunkLines = 16;
/// Of a block that moves lines.
inline constexpr std::int32_t kLineThreads = 512;
inline constexpr std::int32_t kLineWarps = kLineThreads / 32;
/// A warp has a lane for every top-k position.
inline constexpr std::int32_t kMaxLineTopK = 32;
/// Every block of dispatch reads the whole routing of its rank.
inline constexpr std::int64_t kMaxLineEntries = 8192;
/// And holds bits of so many words, and tables of so many experts, in shared memory.
inline constexpr std::int64_t kMaxLineWords = 12288;
inline constexpr std::int32_t kMaxLineExperts = 2048;

/// Words of a bitmap of tokens; odd, so that neighbouring bitmaps lie in different banks.
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t line_words(std::int64_t max_tokens) noexcept {
  return static_cast<std::int32_t>((max_tokens + 31) / 32) | 1;
}

/// Lines that so many bytes take.
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t lines_of(std::int64_t num_bytes) noexcept {
  const auto units = static_cast<std::int32_t>((num_bytes + kUnitBytes - 1) / kUnitBytes);
  const std::int32_t rest = units % kPairUnits;
  return units / kPairUnits * 2 + (rest == 0 ? 0 : rest <= kPairUnits / 2 ? 1 : 2);
}

/// The same where a line also has a scale.
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t block_lines_of(std::int64_t num_bytes) noexcept {
  const auto units = static_cast<std::int32_t>((num_bytes + kUnitBytes - 1) / kUnitBytes);
  return (units + kBlockUnits - 1) / kBlockUnits;
}

/// The rank of an expert without a division. Exact for experts below kMaxLineExperts: a quotient is at least half a
/// divisor's inverse away from the next integer, which is more than what rounding takes away.
class RankFinder {
 public:
  constexpr RankFinder() = default;
  explicit RankFinder(const ExpertPartition& partition) noexcept {
    const std::int32_t narrow = partition.num_local_experts(partition.num_ranks - 1);
    num_wide_ = partition.num_experts - narrow * partition.num_ranks;
    wide_end_ = num_wide_ * (narrow + 1);
    wide_inverse_ = 1.0F / static_cast<float>(narrow + 1);
    inverse_ = narrow > 0 ? 1.0F / static_cast<float>(narrow) : 0.0F;
  }

  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t rank_of(std::int32_t expert) const noexcept {
    const bool is_wide = expert < wide_end_;
    const float idx = static_cast<float>(is_wide ? expert : expert - wide_end_) + 0.5F;
    const auto rank = static_cast<std::int32_t>(idx * (is_wide ? wide_inverse_ : inverse_));
    return is_wide ? rank : num_wide_ + rank;
  }

 private:
  std::int32_t num_wide_ = 0;  ///< ranks with one expert more than the others
  std::int32_t wide_end_ = 0;  ///< first expert behind theirs
  float wide_inverse_ = 1.0F;
  float inverse_ = 1.0F;
};

/// The product of two numbers of 32 bits: a quarter of the instructions that 64 bits take.
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t wide_product(std::int64_t a, std::int64_t b) noexcept {
  return static_cast<std::int64_t>(std::uint64_t{static_cast<std::uint32_t>(a)} * static_cast<std::uint32_t>(b));
}

/// Divides by a number that the host knows, with one multiplication.
class LineDivisor {
 public:
  constexpr LineDivisor() = default;
  constexpr explicit LineDivisor(std::int32_t divisor) noexcept
      : inverse_(divisor > 1
                     ? static_cast<std::uint32_t>((std::uint64_t{1} << 32) / static_cast<std::uint32_t>(divisor)) + 1
                     : 0) {}
  /// Whether quotients of all numbers up to this one are exact.
  [[nodiscard]] static constexpr bool is_exact_up_to(std::int64_t number, std::int64_t divisor) noexcept {
    return divisor <= 1 || number < (std::int64_t{1} << 32) / divisor;
  }
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t quotient(std::int32_t number) const noexcept {
    if (inverse_ == 0) return number;
    return static_cast<std::int32_t>((std::uint64_t{static_cast<std::uint32_t>(number)} * inverse_) >> 32);
  }

 private:
  std::uint32_t inverse_ = 0;  ///< 0: the divisor is one
};

/// What lies where among the lines that a rank receives. There are two sets of each kind; a call uses that of the last
/// bit of its epoch (docs/low_latency.md says why that is enough). Numbers that kernels need again and again are kept
/// ready, in 32 bits where they fit: each instruction is executed by every warp.
struct LinePlan {
  std::int32_t num_ranks = 1;
  std::int32_t num_columns = 0;  ///< of the counts of a source
  std::int32_t max_tokens = 0;
  std::int32_t top_k = 1;
  std::int64_t row_bytes = 0;    ///< on the way
  std::int64_t scale_bytes = 0;  ///< likewise
  std::int32_t header_lines = 0;
  std::int32_t row_lines = 0;
  std::int32_t scale_lines = 0;
  std::int64_t combine_row_bytes = 0;
  std::int32_t combine_lines = 0;
  std::int64_t combine_slots = 0;
  bool routes = false;         ///< dispatch with ids goes by lines
  bool quantises = false;      ///< rows of bf16 become fp8, and scales are among their lines
  bool powers_of_two = false;  ///< those scales
  ScaleFormat scale_format = ScaleFormat::kFp32;
  RankFinder ranks;
  // What follows from it; see complete().
  bool combines = false;  ///< combine goes by lines; not rows of so many chunks that warps could not count them
  std::int32_t row_chunks = 0;
  std::int32_t scale_chunks = 0;  ///< of scales that travel as they are given
  std::int32_t combine_chunks = 0;
  std::int32_t dispatch_parts =
      0;  ///< what of a dispatched row is for a warp each: header, chunks of row and scales, the handle
  std::uint32_t slot_bytes = 0;
  std::uint32_t combine_slot_bytes = 0;
  std::int64_t counts_bytes =
      0;                       ///< of uint64 [num_ranks, num_columns]: what a source has counted, each with its epoch
  std::int64_t set_bytes = 0;  ///< of one set of dispatch
  LineDivisor by_parts;
  LineDivisor by_combine_chunks;
  LineDivisor by_ranks;
  LineDivisor by_others;  ///< ranks but one
  LineDivisor by_top_k;

  constexpr void complete() noexcept {
    const auto chunks_of = [](std::int32_t lines) { return (lines + kChunkLines - 1) / kChunkLines; };
    row_chunks = chunks_of(row_lines);
    scale_chunks = chunks_of(scale_lines);
    combine_chunks = chunks_of(combine_lines);
    dispatch_parts = 1 + row_chunks + scale_chunks + 1;
    slot_bytes = static_cast<std::uint32_t>((header_lines + row_lines + scale_lines) * kLineBytes);
    combine_slot_bytes = static_cast<std::uint32_t>(combine_lines * kLineBytes);
    counts_bytes = (std::int64_t{num_ranks} * num_columns * 8 + kLineBytes - 1) / kLineBytes * kLineBytes;
    set_bytes = routes ? counts_bytes + std::int64_t{num_ranks} * max_tokens * slot_bytes : 0;
    by_parts = LineDivisor(dispatch_parts);
    by_combine_chunks = LineDivisor(combine_chunks);
    by_ranks = LineDivisor(num_ranks);
    by_others = LineDivisor(num_ranks - 1);
    by_top_k = LineDivisor(top_k);
  }
  /// Of a combine that moves wide chunks. What lies where stays as it is.
  constexpr void widen_combine() noexcept {
    combine_chunks = (combine_lines + kWideChunkLines - 1) / kWideChunkLines;
    by_combine_chunks = LineDivisor(combine_chunks);
  }

  // ---- In the section of dispatch -----------------------------------------------------------------------------------

  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t counts_offset(std::uint32_t epoch,
                                                                         std::int32_t source) const noexcept {
    return ((epoch & 1U) != 0 ? set_bytes : 0) + static_cast<std::uint32_t>(source * num_columns * 8);
  }
  /// Where the `pair`-th row of a source begins.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t slot_offset(std::uint32_t epoch, std::int32_t source,
                                                                       std::int32_t pair) const noexcept {
    const auto slot = static_cast<std::uint32_t>(source * max_tokens + pair);
    return ((epoch & 1U) != 0 ? set_bytes : 0) + counts_bytes +
           static_cast<std::int64_t>(std::uint64_t{slot} * slot_bytes);
  }
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t dispatch_bytes() const noexcept { return 2 * set_bytes; }

  // ---- In the section of combine ------------------------------------------------------------------------------------

  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t combine_slot_offset(std::uint32_t epoch,
                                                                               std::int64_t slot) const noexcept {
    const auto place = static_cast<std::uint64_t>(((epoch & 1U) != 0 ? combine_slots : 0) + slot);
    return static_cast<std::int64_t>(place * combine_slot_bytes);
  }
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t combine_bytes() const noexcept {
    return 2 * combine_slots * combine_slot_bytes;
  }
};

// Columns of the counts of a source: tokens for each rank, assignments to each expert, whether it refused its routing.
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t expert_column(std::int32_t num_ranks,
                                                                       std::int32_t expert) noexcept {
  return num_ranks + expert;
}
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t status_column(std::int32_t num_ranks,
                                                                       std::int32_t num_experts) noexcept {
  return num_ranks + num_experts;
}

/// Words of 32 bits before the three arrays of a header.
inline constexpr std::int32_t kHeaderStart = 2;
/// The header of a row: its token, a word that means nothing, and by top-k position the local
/// expert (-1: not there), the row's place among those of this source and expert, and the weight.
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t header_words(std::int32_t top_k) noexcept {
  return kHeaderStart + 3 * top_k;
}

[[nodiscard]] LinePlan plan_lines(const DispatchLayout& layout) noexcept;

}  // namespace epistle::cuda
