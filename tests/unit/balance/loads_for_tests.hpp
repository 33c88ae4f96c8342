// Loads and placements for tests of the balancer, the same on every machine.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "balance/slot_table.hpp"
#include "routing/philox.hpp"

namespace epistle::test {

/// Uniform in [0, 1).
inline double uniform(PhiloxStream& stream) { return static_cast<double>(stream.next_u32()) / 4294967296.0; }

/// Standard normal, by Box and Muller.
inline double normal(PhiloxStream& stream) {
  constexpr double kTwoPi = 6.283185307179586;
  const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform(stream)));
  return radius * std::cos(kTwoPi * uniform(stream));
}

inline PhiloxStream numbers(std::uint64_t seed) { return {seed, RandomAddress{}}; }

inline std::vector<double> lognormal_loads(std::uint64_t seed, std::size_t num_experts, double sigma) {
  PhiloxStream stream = numbers(seed);
  std::vector<double> loads(num_experts);
  for (double& load : loads) load = std::exp(sigma * normal(stream));
  return loads;
}

/// Popularity 1 / i^exponent, shuffled.
inline std::vector<double> zipf_loads(std::uint64_t seed, std::size_t num_experts, double exponent) {
  PhiloxStream stream = numbers(seed);
  std::vector<double> loads(num_experts);
  for (std::size_t idx = 0; idx < num_experts; ++idx) loads[idx] = std::pow(static_cast<double>(idx + 1), -exponent);
  for (std::size_t idx = num_experts; idx > 1; --idx) std::swap(loads[idx - 1], loads[stream.below(idx)]);
  return loads;
}

/// Every expert has a slot, and no rank holds one twice.
inline void expect_sound(const balance::SlotTable& table, std::int32_t num_experts, const balance::Cluster& cluster) {
  ASSERT_NO_THROW(table.check(num_experts, cluster));
  for (std::int32_t rank = 0; rank < table.num_ranks(); ++rank) {
    std::multiset<std::int32_t> held(table.experts_of(rank).begin(), table.experts_of(rank).end());
    held.erase(balance::kEmptySlot);
    for (const std::int32_t expert : held) EXPECT_EQ(held.count(expert), 1U) << "rank " << rank;
  }
}

/// The least largest rank load of a placement under any split of loads: of all sets of ranks, the loads that lie wholly
/// within, over their number (max-flow duality). By looking at all sets.
inline double least_largest_load(const balance::SlotTable& table, const std::vector<double>& loads) {
  const auto num_ranks = static_cast<std::size_t>(table.num_ranks());
  std::vector<std::uint32_t> ranks_of(loads.size(), 0);
  std::uint32_t holders = 0;
  for (std::size_t rank = 0; rank < num_ranks; ++rank) {
    if (table.begin[rank] != table.begin[rank + 1]) holders |= 1U << rank;
    for (const std::int32_t expert : table.experts_of(static_cast<std::int32_t>(rank))) {
      if (expert != balance::kEmptySlot) ranks_of[static_cast<std::size_t>(expert)] |= 1U << rank;
    }
  }
  double largest = 0.0;
  for (std::uint32_t set = 1; set < (1U << num_ranks); ++set) {
    if ((set & ~holders) != 0) continue;
    double inside = 0.0;
    for (std::size_t expert = 0; expert < loads.size(); ++expert) {
      if ((ranks_of[expert] & ~set) == 0) inside += loads[expert];
    }
    largest = std::max(largest, inside / std::popcount(set));
  }
  return largest;
}

/// Some placement: every expert once, then whatever fits. Slots may stay empty.
inline balance::SlotTable random_placement(std::uint64_t seed, std::int32_t num_experts,
                                           const balance::Cluster& cluster) {
  PhiloxStream stream = numbers(seed);
  balance::SlotTable table = balance::SlotTable::empty(cluster.slots_of_rank);
  std::vector<std::size_t> slots(table.expert.size());
  std::iota(slots.begin(), slots.end(), std::size_t{0});
  for (std::size_t idx = slots.size(); idx > 1; --idx) std::swap(slots[idx - 1], slots[stream.below(idx)]);
  for (std::int32_t expert = 0; expert < num_experts; ++expert) {
    table.expert[slots[static_cast<std::size_t>(expert)]] = expert;
  }
  const std::vector<std::int32_t> rank_of = table.rank_of_slot();
  for (std::size_t idx = static_cast<std::size_t>(num_experts); idx < slots.size(); ++idx) {
    const auto expert = static_cast<std::int32_t>(stream.below(static_cast<std::uint64_t>(num_experts)));
    const auto held = table.experts_of(rank_of[slots[idx]]);
    if (std::find(held.begin(), held.end(), expert) == held.end()) table.expert[slots[idx]] = expert;
  }
  return table;
}

}  // namespace epistle::test
