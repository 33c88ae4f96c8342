// Betters a placement by few changes: a replica more of an expert whose ranks are too full, in an empty slot or in
// place of a replica that is not needed, or two experts that change places. Every change is tried before it is made,
// with the shares that are best for it.
#pragma once

#include <cstdint>
#include <vector>

#include "balance/copy_rules.hpp"
#include "balance/share_state.hpp"

namespace epistle::balance {

struct SearchRules {
  std::int64_t goal = 0;        ///< largest rank load to come down to
  std::int32_t max_steps = 0;   ///< changes
  std::int32_t num_trials = 8;  ///< changes tried for each that is made
  bool only_empty_slots = false;
  /// A change must take away at least this much of what is above the goal, for each copy that it takes.
  std::int64_t min_gain_per_copy = 1;
};

class LocalSearch {
 public:
  /// Keeps references. Shares of `state` are balanced as far as its placement allows. `copies` null: copies cost
  /// nothing.
  LocalSearch(ShareState& state, CopyCount* copies, const SearchRules& rules)
      : state_(&state), copies_(copies), rules_(rules) {}

  /// Changes the placement until the goal is reached or nothing helps any more. Returns the largest rank load.
  std::int64_t run();

  [[nodiscard]] std::int32_t num_steps() const noexcept { return num_steps_; }

 private:
  struct Change {
    std::int32_t slot = -1;  // gets `expert`
    std::int32_t expert = -1;
    std::int32_t other_slot = -1;  // where there is one: gets what was in `slot`
    std::int64_t gain = 0;         // expected
    double value = 0.0;            // gain per copy
  };

  [[nodiscard]] bool search(std::int64_t goal);
  [[nodiscard]] bool step(std::int64_t goal, std::int64_t above);
  void collect(std::int64_t goal);
  void collect_replicas(std::int32_t to, std::int64_t goal);
  void collect_swaps(std::int32_t to, std::int64_t goal);
  void offer(Change change);
  [[nodiscard]] std::int64_t cost(const Change& change) const;
  void make(const Change& change);
  void unmake(const Change& change, std::int32_t old_expert);
  struct Victim {
    std::int32_t slot = -1;
    std::int64_t loss = 0;  // comes back to ranks that are too full
    std::int64_t share = 0;
  };
  [[nodiscard]] std::int64_t loss_without(std::int32_t slot, std::int64_t goal) const;
  [[nodiscard]] Victim find_victim(std::int32_t rank, std::int64_t goal) const;

  ShareState* state_;
  CopyCount* copies_;
  SearchRules rules_;
  std::int32_t num_steps_ = 0;
  std::vector<Change> candidates_;         // the best, the best of all first
  std::vector<std::int64_t> stuck_share_;  // [num_experts]; of ranks that are too full
  std::vector<std::int32_t> stuck_experts_;
  std::vector<std::int32_t> stuck_slots_;
  ShareState::Shares before_;
};

}  // namespace epistle::balance
