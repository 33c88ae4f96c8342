// Replicas for one batch, fetched ahead into spare slots where the shares that the placement allows are not even
// enough. Fast enough for every step.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "balance/share_state.hpp"
#include "balance/slot_table.hpp"

namespace epistle::balance {

struct PrefetchRules {
  std::int32_t max_per_rank = 0;  ///< spare slots
  double tolerance = 0.01;        ///< a rank may have this much more than the mean
};

/// `rank` fetches the weights of `expert` into `slot` of the wide table.
struct Fetch {
  std::int32_t rank = 0;
  std::int32_t expert = 0;
  std::int32_t slot = 0;
  friend bool operator==(const Fetch&, const Fetch&) = default;
};

/// Made once for a placement; its memory is used again by every batch. Not thread safe. Every rank that asks with the
/// same counts gets the same plan.
///
/// What replicas that are there can take comes first. Then the fullest rank gives to the emptiest one as much of one
/// expert as brings one of the two to the mean, until nobody is above the tolerance. Where the spare slots of a rank
/// hold as many experts as a rank has slots, that is so whatever the routing; usually one or two are enough.
class PrefetchPlanner {
 public:
  PrefetchPlanner(const SlotTable& table, std::int32_t num_experts, const PrefetchRules& rules);

  void solve(std::span<const std::int64_t> tokens_per_expert);

  /// The placement with the spare slots behind those of each rank; empty but for what is fetched.
  [[nodiscard]] const SlotTable& table() const noexcept { return wide_; }
  [[nodiscard]] std::span<const Fetch> fetches() const noexcept { return fetches_; }
  /// [num_slots of table()]; tokens that a slot takes.
  [[nodiscard]] std::span<const std::int64_t> quotas() const noexcept { return quotas_; }
  [[nodiscard]] std::span<const std::int64_t> rank_loads() const noexcept { return rank_loads_; }
  /// Whether every rank is within the tolerance.
  [[nodiscard]] bool is_even() const noexcept { return is_even_; }

 private:
  void forget_fetches();
  void take_shares();
  void give_away(std::int64_t goal, std::int64_t mean);
  void sort_ranks(std::int64_t goal, std::int64_t mean);
  [[nodiscard]] std::int32_t choose_slot(std::int32_t from, std::int32_t to, std::int64_t wanted) const;
  [[nodiscard]] bool holds(std::int32_t rank, std::int32_t expert) const;
  void search_on(std::span<const std::int64_t> tokens_per_expert, std::int64_t goal);

  PrefetchRules rules_;
  ShareState state_;  // of the placement as it is
  SlotTable wide_;
  std::vector<std::int32_t> rank_of_;      // [slots of wide_]
  std::vector<std::int32_t> num_fetched_;  // [num_ranks]
  std::vector<Fetch> fetches_;
  std::vector<std::int64_t> quotas_;
  std::vector<std::int64_t> rank_loads_;
  std::vector<std::int32_t> givers_;  // ranks above the goal, the fullest last
  std::vector<std::int32_t> takers_;  // ranks below the mean with a spare slot, the emptiest last
  bool is_even_ = true;
};

}  // namespace epistle::balance
