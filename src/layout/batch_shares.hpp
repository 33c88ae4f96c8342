// How the tokens of one batch are shared out to the replicas of their experts, so that the fullest rank gets as little
// as the slots allow. This is what the kernel of cuda/quotas/ does, step by step and to the bit, for the host and for
// the tests. What it decides depends on no order within a step, so that a step can be done by many threads at once.
//
//   Begin    An expert's tokens are split evenly, the first replicas one more. The target is the mean, rounded up.
//   Phase    Search: from the ranks below the target, level by level, along replicas that can pass on what they have.
//            Ranks above the target that were not reached hold, with all that they can pass on to, nothing that could
//            be elsewhere: the mean of these is a lower bound, and the new target. Otherwise every rank above the
//            target, from the outermost level inwards, passes on what it has too much one level further in.
//   End      No rank is above the target.
//
// After a phase what is still too much is further out than before, since it was passed on along shortest ways only, so
// phases come to an end; the last target was a lower bound, so the end is the optimum.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "epistle/types.hpp"

#include "layout/replica_hash.hpp"

namespace epistle {

/// Tokens are counted in units of 2^shift, so that all of them together stay below 2^30.
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr int batch_shift(std::int64_t num_tokens) noexcept {
  constexpr int kMaxBits = 30;
  int shift = 0;
  while ((num_tokens >> shift) >= (std::int64_t{1} << kMaxBits)) ++shift;
  return shift;
}

/// An expert's tokens in units. Numbers below 0 count as 0.
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t batch_units(std::int64_t num_tokens, int shift) noexcept {
  return num_tokens <= 0 ? 0 : static_cast<std::int32_t>(num_tokens >> shift);
}

/// What replica `idx` of `count` begins with.
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t first_share(std::int32_t units, std::int32_t count,
                                                                     std::int32_t idx) noexcept {
  return units / count + (idx < units % count ? 1 : 0);
}

[[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t mean_of_ranks(std::int32_t units,
                                                                       std::int32_t count) noexcept {
  return count == 0 ? 0 : (units + count - 1) / count;
}

/// ReplicaEntry::part_end of replica `idx` of `count`: `sum` of the expert's `units` belong to the ones up to it. An
/// expert without any has replicas that are alike.
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::uint32_t batch_part_end(std::int32_t sum, std::int32_t units,
                                                                         std::int32_t count,
                                                                         std::int32_t idx) noexcept {
  constexpr std::uint64_t kLargest = 0xffffffffU;
  const std::uint64_t part = units > 0 ? static_cast<std::uint64_t>(sum) : static_cast<std::uint64_t>(idx) + 1;
  const std::uint64_t end = (part << 32U) / static_cast<std::uint64_t>(units > 0 ? units : count);
  return static_cast<std::uint32_t>(end < kLargest ? end : kLargest);
}

/// Made once for a placement; its memory is used again by every batch.
class BatchShares {
 public:
  /// `begin` [num_experts + 1] into `entries`, whose slots are ascending by rank.
  BatchShares(std::span<const std::int32_t> begin, std::span<const ReplicaEntry> entries, std::int32_t num_ranks);

  /// [num_experts] tokens.
  void solve(std::span<const std::int64_t> expert_tokens);

  /// [entries]
  [[nodiscard]] std::span<const std::int32_t> units() const noexcept { return share_; }
  [[nodiscard]] std::span<const std::int32_t> rank_units() const noexcept { return rank_load_; }
  [[nodiscard]] std::int64_t in_tokens(std::int32_t units) const noexcept { return std::int64_t{units} << shift_; }
  /// The ends of the parts of the entries that this was made of.
  void set_parts(std::span<ReplicaEntry> entries) const;
  /// Phases of the last batch.
  [[nodiscard]] std::int32_t num_phases() const noexcept { return num_phases_; }

 private:
  static constexpr std::int32_t kNotReached = -1;
  void begin_with(std::span<const std::int64_t> expert_tokens);
  [[nodiscard]] bool is_any_above() const noexcept;
  [[nodiscard]] std::int32_t search();
  void reach(std::size_t expert, std::int32_t level);
  [[nodiscard]] bool is_any_stuck() const noexcept;
  [[nodiscard]] std::int32_t mean_of_stuck();
  void pass_on(std::size_t rank, std::int32_t level);
  [[nodiscard]] std::size_t rank_at(std::int32_t entry) const noexcept {
    return static_cast<std::size_t>(rank_of_[static_cast<std::size_t>(entry)]);
  }

  std::vector<std::int32_t> begin_;
  std::vector<std::int32_t> rank_of_;               // [entries]
  std::vector<std::int32_t> expert_of_;             // [entries]
  std::vector<std::size_t> replicated_;             // experts that have several
  std::vector<std::vector<std::int32_t>> entries_;  // [num_ranks] those of replicated experts, by slot
  std::int32_t num_holders_ = 0;                    // ranks that have slots
  std::vector<char> is_holder_;

  int shift_ = 0;
  std::vector<std::int32_t> share_;  // [entries]
  std::vector<std::int32_t> rank_load_;
  std::int32_t target_ = 0;
  std::int32_t num_phases_ = 0;
  // Of a search.
  std::vector<std::int32_t> rank_level_;
  std::vector<std::int32_t> expert_level_;
  std::vector<std::int32_t> receiver_;  // [experts] entry that takes what others pass on
  std::vector<std::size_t> added_;      // ranks
};

}  // namespace epistle
