// Placements where slots are scarce: whole, and as good as the bound says they can be.
#include "balance/component_plan.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <optional>
#include <vector>

#include <gtest/gtest.h>

#include "balance/component_bound.hpp"
#include "balance/fresh_plan.hpp"
#include "balance/hot_components.hpp"
#include "unit/balance/loads_for_tests.hpp"

namespace epistle::balance {
namespace {

using test::expect_sound;
using test::lognormal_loads;
using test::zipf_loads;

std::vector<std::int64_t> loads_in_units(const std::vector<double>& drawn) {
  std::vector<std::int64_t> loads;
  for (const double load : drawn) loads.push_back(static_cast<std::int64_t>(load * 1e6));
  return loads;
}

TEST(ComponentPlan, IsWithinATenthOfAPercentOfTheBoundWhereFewExpertsHaveMost) {
  const std::vector<std::int32_t> slots(72, 4);
  const std::vector<std::int64_t> loads = loads_in_units(zipf_loads(3, 256, 1.0));
  const std::optional<SlotTable> table = plan_components(loads, slots);
  ASSERT_TRUE(table.has_value());
  const double largest = static_cast<double>(largest_rank_load(share_best(*table, loads)));
  const double bound = component_bound(loads, Cluster::even(72, 288));
  EXPECT_GE(largest, bound * (1.0 - 1e-6));
  EXPECT_LE(largest, bound * 1.001);
}

TEST(ComponentPlan, EveryExpertHasASlotAndNoRankTwoOfOne) {
  int num_planned = 0;
  for (std::uint32_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    const std::uint32_t num_ranks = 2 + seed * 7 % 40;
    const std::uint32_t per_rank = 1 + seed % 5;
    const std::uint32_t num_experts = num_ranks * per_rank - seed % 4 % num_ranks;
    std::vector<std::int64_t> loads =
        loads_in_units(seed % 2 == 0 ? zipf_loads(seed, num_experts, 0.5 + 0.1 * (seed % 11))
                                     : lognormal_loads(seed, num_experts, 0.2 * (seed % 9)));
    if (seed % 10 == 9) std::fill(loads.begin() + num_experts / 2, loads.end(), 0);
    std::vector<std::int32_t> slots(num_ranks, static_cast<std::int32_t>(per_rank));
    if (seed % 3 == 0) slots.insert(slots.begin(), 0);  // a rank that holds nothing
    const std::optional<SlotTable> table = plan_components(loads, slots);
    if (!table) continue;
    ++num_planned;
    expect_sound(*table, static_cast<std::int32_t>(num_experts), Cluster{.slots_of_rank = slots, .domain_of_rank = {}});
  }
  EXPECT_GE(num_planned, 20);
}

TEST(ComponentPlan, IsNoneWhereRanksDifferOrAllHaveASlotToSpare) {
  const std::vector<std::int64_t> loads = loads_in_units(zipf_loads(1, 8, 1.0));
  EXPECT_FALSE(plan_components(loads, std::vector<std::int32_t>{3, 3, 2}).has_value());
  EXPECT_FALSE(plan_components(loads, std::vector<std::int32_t>{4, 4, 4}).has_value());
}

TEST(HotComponents, SayThatTheyDoNotKnowWhenTheyHaveToStop) {
  const std::vector<std::int64_t> loads = loads_in_units(zipf_loads(1, 256, 1.0));
  const HotComponents components(loads, 72, 4);
  const double mean = components.total() / 72.0;
  std::vector<HotComponent> way;
  EXPECT_EQ(components.find(mean / 0.8924, 10, way), HotComponents::Answer::kUnknown);
  EXPECT_TRUE(way.empty());
  EXPECT_EQ(components.find(mean / 0.8924, 2'000'000, way), HotComponents::Answer::kNo);
  EXPECT_EQ(components.find(mean / 0.8920, 2'000'000, way), HotComponents::Answer::kYes);
  const auto ranks = [](std::int64_t sum, const HotComponent& part) { return sum + part.num_ranks; };
  EXPECT_LE(std::accumulate(way.begin(), way.end(), std::int64_t{0}, ranks), 72);
}

}  // namespace
}  // namespace epistle::balance
