// What lies in the control section of a rank on a GPU: signals, counts, and arrival flags, each with one writer. Part
// of the dispatch layout: plain values, usable from host and device code.
//
// A signal carries the number of the call it belongs to (its epoch), so nothing is ever reset.
#pragma once

#include <cstdint>

#include "layout/dispatch_layout.hpp"

namespace epistle {

struct DeviceControl {
  std::int32_t num_ranks = 1;
  std::int32_t num_experts = 0;
  std::int32_t top_k = 0;
  std::int64_t max_tokens = 0;
  std::int32_t count_blocks = 1;  ///< thread blocks that count in prepare; equal on all ranks

  /// Counts that one thread block announces: tokens for each rank, assignments to each expert, a status.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t count_columns() const noexcept {
    return num_ranks + num_experts + 1;
  }
  /// What a source tells when its rows have places: pairs that fit for each rank, drops of each of the receiver's
  /// experts, drops in all.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t outcome_entries() const noexcept {
    return num_ranks + max_local_experts() + 1;
  }
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t max_local_experts() const noexcept {
    return ExpertPartition{num_experts, num_ranks}.max_local_experts();
  }

  // ---- Offsets in bytes, in the order of the section ----------------------------------------------------------------

  /// uint64 [2, num_ranks]: a rank has started a call, by the last bit of its epoch. No rank is ever two calls ahead of
  /// another, so a word stays until everybody is done with its call.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t ready_offset() const noexcept { return 0; }
  /// uint64 [num_ranks]: a rank's prepare has announced the dispatch behind it.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t early_ready_offset() const noexcept {
    return ready_offset() + aligned(2 * num_ranks * kSignalBytes);
  }
  /// uint64 [num_ranks, kMaxBlocks]: all that a thread block of a rank sends in a call is there
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t done_offset() const noexcept {
    return early_ready_offset() + aligned(num_ranks * kSignalBytes);
  }
  /// uint64 [num_ranks, count_blocks, count_columns]: a count, and above it the epoch, so that a count is its own
  /// signal
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t counts_offset() const noexcept {
    return done_offset() + aligned(num_ranks * kMaxBlocks * kSignalBytes);
  }
  /// int32 [num_ranks, outcome_entries]
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t outcomes_offset() const noexcept {
    return counts_offset() + aligned(std::int64_t{num_ranks} * count_blocks * count_columns() * kSignalBytes);
  }
  /// uint32 [max_tokens * num_ranks]: the row of a received pair is there.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t pair_flags_offset() const noexcept {
    return outcomes_offset() + aligned(std::int64_t{num_ranks} * outcome_entries() * kFlagBytes);
  }
  /// uint32 [max_tokens * min(top_k, other ranks)]: a row of the stage is there.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t stage_flags_offset() const noexcept {
    return pair_flags_offset() + aligned(max_tokens * num_ranks * kFlagBytes);
  }
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t num_bytes() const noexcept {
    const std::int32_t others = top_k < num_ranks - 1 ? top_k : num_ranks - 1;
    return stage_flags_offset() + aligned(max_tokens * others * kFlagBytes);
  }

  /// Thread blocks of one kernel that signal.
  static constexpr std::int32_t kMaxBlocks = 256;
  static constexpr std::int64_t kSignalBytes = 8;
  static constexpr std::int64_t kFlagBytes = 4;

 private:
  [[nodiscard]] EPISTLE_HOST_DEVICE static constexpr std::int64_t aligned(std::int64_t bytes) noexcept {
    return (bytes + 127) / 128 * 128;
  }
};

}  // namespace epistle
