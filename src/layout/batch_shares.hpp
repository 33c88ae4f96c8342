// How the tokens of one batch are shared out to the replicas of their experts, so that the fullest rank gets as little
// as the slots allow, and 1/256 more at most. This is what the kernel of cuda/quotas/ does, step by step and to the
// bit, for the host and for the tests. What it decides depends on no order within a step, so that a step can be done by
// many threads at once.
//
//   Begin    An expert's tokens are split evenly, the first replicas one more. The target is the mean, with its slack.
//   Rounds   Every expert with several replicas moves some from its fullest rank to its emptiest, all at once, by the
//            loads before the round: less where ranks share more experts, since these move too. Until no rank is above
//            the target, or there were enough. None where there are few slots to spare.
//   Phases   Search: from the ranks below the target, level by level, along replicas that can pass on what they have.
//            The fullest of the ranks that were not reached holds, with all that it can pass on to, nothing that could
//            be elsewhere: if it is above the target, the mean of these is a lower bound, and with its slack the new
//            target. Otherwise every rank above the target, from the outermost level inwards, passes on what it has too
//            much one level further in.
//   End      No rank is above the target.
//
// Rounds are short and even out what is everywhere; phases find long ways, and what is in no way to be had. After a
// phase what is still too much is further out than before, since it was passed on along shortest ways only, so phases
// come to an end; the last target was a lower bound with its slack.
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

/// Rounds come first where ranks share much, with two slots or more to spare each. Where there are fewer, most of what
/// is uneven is in no way to be had, and phases alone come to that sooner.
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t num_batch_rounds(std::int32_t num_entries,
                                                                          std::int32_t num_experts,
                                                                          std::int32_t num_ranks) noexcept {
  constexpr std::int32_t kMostRounds = 16;
  return num_entries - num_experts >= 2 * num_ranks ? kMostRounds : 0;
}

/// What ranks may get that have so many units together: their mean, rounded up, and with rounds 1/256 of it. With the
/// slack most of the last, longest ways need not be found; chance deviates further when a hash draws by the quotas.
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t target_of_ranks(std::int32_t units, std::int32_t count,
                                                                         std::int32_t num_rounds) noexcept {
  constexpr std::int32_t kSlack = 256;
  const std::int32_t mean = count == 0 ? 0 : (units + count - 1) / count;
  return num_rounds > 0 ? mean + mean / kSlack : mean;
}

/// Of the difference between two ranks an expert moves a part in a round, in 1/2^32: half of it where they share
/// nothing else, and less the more experts they share, since these move at the same time.
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::uint32_t pace_of_rank(std::int32_t num_shared) noexcept {
  return 0xffffffffU / static_cast<std::uint32_t>(num_shared + 1);
}
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t amount_of_round(std::int32_t difference, std::uint32_t pace,
                                                                         std::uint32_t other_pace) noexcept {
  constexpr std::uint64_t kHalf = std::uint64_t{1} << 31U;  // rounded: differences of a few tokens are evened out, too
  const std::uint64_t mean_pace = pace / 2 + other_pace / 2;
  return static_cast<std::int32_t>((static_cast<std::uint64_t>(difference) * mean_pace + kHalf) >> 32U);
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
  /// Of the last batch.
  [[nodiscard]] std::int32_t num_rounds() const noexcept { return num_rounds_; }
  [[nodiscard]] std::int32_t num_phases() const noexcept { return num_phases_; }

 private:
  static constexpr std::int32_t kNotReached = -1;
  struct Move {
    std::size_t from;  // entries
    std::size_t to;
    std::int32_t amount;
  };

  void begin_with(std::span<const std::int64_t> expert_tokens);
  void even_out();
  void find_move(std::size_t expert);
  [[nodiscard]] bool is_any_above() const noexcept;
  [[nodiscard]] std::int32_t search();
  void reach(std::size_t expert, std::int32_t level);
  [[nodiscard]] bool is_any_stuck() const noexcept;
  [[nodiscard]] std::int32_t target_of_stuck();
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
  std::vector<std::uint32_t> pace_;  // [num_ranks]

  int shift_ = 0;
  std::vector<std::int32_t> share_;  // [entries]
  std::vector<std::int32_t> rank_load_;
  std::int32_t target_ = 0;
  std::int32_t max_rounds_ = 0;
  std::int32_t num_rounds_ = 0;
  std::int32_t num_phases_ = 0;
  std::vector<Move> moves_;  // of a round
  // Of a search.
  std::vector<std::int32_t> rank_level_;
  std::vector<std::int32_t> expert_level_;
  std::vector<std::int32_t> receiver_;  // [experts] entry that takes what others pass on
  std::vector<std::size_t> added_;      // ranks
};

}  // namespace epistle
