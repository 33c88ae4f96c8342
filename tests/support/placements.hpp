// Random placements: replicas, ranks with different numbers of slots, and with none.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "epistle/placement.hpp"

#include "support/scenario.hpp"

namespace epistle::testing {

struct PlacementShape {
  std::int32_t num_experts = 0;
  int num_ranks = 1;
  std::uint64_t generation = 0;
};

/// Slots that a rank of a random placement can have: the experts fit where one rank has none.
[[nodiscard]] inline std::int32_t random_slots_per_rank(std::int32_t num_experts, int num_ranks) {
  const int holders = std::max(1, num_ranks - 1);
  return std::min(num_experts, 2 * ((num_experts + holders - 1) / holders));
}

/// The same for the same seed, on every rank.
[[nodiscard]] inline Placement random_placement(const PlacementShape& shape, std::uint64_t seed) {
  std::uint64_t num_drawn = 0;
  const auto below = [&](std::int64_t end) {
    return static_cast<std::int64_t>(mix(seed, num_drawn++) % static_cast<std::uint64_t>(end));
  };
  const auto num_ranks = static_cast<std::size_t>(shape.num_ranks);
  const auto room = static_cast<std::size_t>(random_slots_per_rank(shape.num_experts, shape.num_ranks));
  const std::size_t empty_rank = num_ranks > 1 ? static_cast<std::size_t>(below(shape.num_ranks)) : num_ranks;
  std::vector<std::vector<std::int32_t>> slots(num_ranks);
  const auto can_hold = [&](std::size_t rank, std::int32_t expert) {
    const std::vector<std::int32_t>& here = slots[rank];
    return rank != empty_rank && here.size() < room && std::find(here.begin(), here.end(), expert) == here.end();
  };
  for (std::int32_t expert = 0; expert < shape.num_experts; ++expert) {
    auto rank = static_cast<std::size_t>(below(shape.num_ranks));
    while (!can_hold(rank, expert)) rank = (rank + 1) % num_ranks;
    slots[rank].push_back(expert);
  }
  for (std::int64_t extra = below(2 * shape.num_experts + 1); extra > 0; --extra) {
    const auto expert = static_cast<std::int32_t>(below(shape.num_experts));
    const auto rank = static_cast<std::size_t>(below(shape.num_ranks));
    if (can_hold(rank, expert)) slots[rank].push_back(expert);
  }
  ReplicaChoice choice;
  for (std::vector<std::int32_t>& here : slots) {
    for (std::size_t slot = here.size(); slot > 1; --slot) {
      std::swap(here[slot - 1], here[static_cast<std::size_t>(below(static_cast<std::int64_t>(slot)))]);
    }
    choice.quotas.emplace_back();
    for (std::size_t slot = 0; slot < here.size(); ++slot) {
      choice.quotas.back().push_back(1.0 + static_cast<double>(below(8)));
    }
  }
  if (below(3) == 0) choice.quotas.clear();
  choice.near_first = below(2) == 0;
  if (below(2) == 0) {
    for (std::size_t rank = 0; rank < num_ranks; ++rank) {
      choice.domain_of_rank.push_back(static_cast<std::int32_t>(rank / 2));
    }
  }
  choice.max_imbalance = 0.1 * static_cast<double>(below(3));
  return {shape.num_experts, slots, shape.generation, choice};
}

/// Gives every round of the scenario another placement, from the seed that it names.
inline void place_experts(Scenario& scenario) {
  if (scenario.placement_seed == 0) return;
  DispatcherConfig& config = scenario.config;
  scenario.next_placements.clear();
  config.slots_per_rank = random_slots_per_rank(config.num_experts, scenario.num_ranks());
  for (int round = 0; round < scenario.num_rounds; ++round) {
    // The trivial one has a slot for every expert, too.
    config.slots_per_rank =
        std::max(config.slots_per_rank, (config.num_experts + scenario.num_ranks() - 1) / scenario.num_ranks());
    const Placement drawn = random_placement({.num_experts = config.num_experts,
                                              .num_ranks = scenario.num_ranks(),
                                              .generation = static_cast<std::uint64_t>(3 * round + 1)},
                                             mix(scenario.placement_seed, static_cast<std::uint64_t>(round)));
    if (round > 0) {
      scenario.next_placements.push_back(drawn);
    } else {
      config.placement = scenario.placed_later ? Placement{} : drawn;
    }
  }
}

}  // namespace epistle::testing
