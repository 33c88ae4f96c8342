// A migration as rounds: the planner's copies in their order, as many at a time as the spare places of the ranks take.
// Pure: every rank computes the same rounds.
#pragma once

#include <cstdint>
#include <vector>

#include "epistle/placement.hpp"

#include "balance/copy_list.hpp"
#include "balance/slot_table.hpp"

namespace epistle::migrate {

/// An expert, and in which place of the rank its weights lie.
struct Held {
  std::int32_t expert = balance::kEmptySlot;
  std::int32_t place = -1;
  friend bool operator==(const Held&, const Held&) = default;
};

/// What lies where on every rank.
struct Places {
  std::vector<std::vector<Held>> slots;  ///< [num_ranks][slots]
  std::vector<Held> staged;              ///< [num_ranks]; an expert that waits aside

  /// Every expert of the table in the place with the number of its slot.
  [[nodiscard]] static Places from(const balance::SlotTable& table);
  /// What dispatch can use of a rank, each expert once: its slots in order, then what waits aside.
  [[nodiscard]] std::vector<Held> usable_of(std::int32_t rank) const;
  [[nodiscard]] Placement placement(std::int32_t num_experts, std::uint64_t generation) const;
};

/// Weights that a rank gets from another: from place to place.
struct Pull {
  std::int32_t expert = 0;
  SlotRef source;       ///< local_slot: the place
  SlotRef destination;  ///< the same
};

struct Round {
  std::vector<Pull> pulls;  ///< in the planner's order; none writes to a place in use
  Places after;
};

/// Rounds that lead from `now` to `target`, whose slots are those of `now`; none where that is there already. `steps`
/// are balance::list_copies of the two. Every rank has `spare` places, two at least, besides its slots.
[[nodiscard]] std::vector<Round> plan_rounds(const Places& now, const balance::SlotTable& target,
                                             const std::vector<balance::CopyStep>& steps, std::int32_t spare);

}  // namespace epistle::migrate
