#include "balance/engine_plan.hpp"

#include <algorithm>
#include <cmath>

#include <gtest/gtest.h>

#include "epistle/error.hpp"

#include "unit/balance/loads_for_tests.hpp"

namespace epistle::balance {
namespace {

double even_balancedness(const std::vector<std::int32_t>& experts, const std::vector<double>& loads,
                         std::int32_t num_ranks) {
  std::vector<int> counts(loads.size(), 0);
  for (const std::int32_t expert : experts) ++counts[static_cast<std::size_t>(expert)];
  std::vector<double> ranks(static_cast<std::size_t>(num_ranks), 0.0);
  const std::size_t per_rank = experts.size() / ranks.size();
  double total = 0.0;
  for (std::size_t slot = 0; slot < experts.size(); ++slot) {
    const auto expert = static_cast<std::size_t>(experts[slot]);
    ranks[slot / per_rank] += loads[expert] / counts[expert];
    total += loads[expert] / counts[expert];
  }
  return total / num_ranks / *std::max_element(ranks.begin(), ranks.end());
}

TEST(EnginePlan, IsAsGoodAsEplbAndFillsAllSlots) {
  const EplbShape shapes[] = {{.num_slots = 288, .num_groups = 1, .num_nodes = 1, .num_ranks = 32},
                              {.num_slots = 288, .num_groups = 8, .num_nodes = 4, .num_ranks = 32},
                              {.num_slots = 288, .num_groups = 1, .num_nodes = 1, .num_ranks = 72},
                              {.num_slots = 512, .num_groups = 1, .num_nodes = 1, .num_ranks = 8}};
  for (const EplbShape& shape : shapes) {
    for (std::uint64_t seed = 1; seed <= 3; ++seed) {
      SCOPED_TRACE(seed);
      const std::vector<double> loads = test::zipf_loads(seed, 256, 1.0);
      const EnginePlan plan = plan_for_engine({.windows = {loads}, .shape = shape});
      ASSERT_EQ(plan.experts.size(), static_cast<std::size_t>(shape.num_slots));
      EXPECT_GE(*std::min_element(plan.experts.begin(), plan.experts.end()), 0);
      EXPECT_NEAR(plan.balancedness, even_balancedness(plan.experts, loads, shape.num_ranks), 1e-6);
      EXPECT_GE(plan.balancedness + 1e-9, even_balancedness(rebalance_experts(loads, shape), loads, shape.num_ranks));
    }
  }
}

TEST(EnginePlan, MovesLittleWhereLoadsDrift) {
  const EplbShape shape{.num_slots = 288, .num_ranks = 32};
  std::vector<double> loads = test::lognormal_loads(1, 256, 0.6);
  const EnginePlan first = plan_for_engine({.windows = {loads}, .shape = shape});
  const EnginePlan same = plan_for_engine({.windows = {loads}, .shape = shape, .current = first.experts});
  EXPECT_EQ(same.experts, first.experts);
  EXPECT_EQ(same.num_copies, 0);
  PhiloxStream stream = test::numbers(2);
  for (double& load : loads) load *= std::exp(0.1 * test::normal(stream));
  const EnginePlan next = plan_for_engine({.windows = {loads}, .shape = shape, .current = first.experts});
  EXPECT_GE(next.balancedness, even_balancedness(first.experts, loads, 32) - 1e-9);
  EXPECT_LE(next.num_copies, 288);
}

TEST(EnginePlan, TakesAPlacementWithTwoReplicasOnOneRank) {
  const EplbShape shape{.num_slots = 8, .num_ranks = 2};
  const EnginePlan plan = plan_for_engine(
      {.windows = {{8, 1, 1, 1, 1, 1}}, .shape = shape, .current = std::vector<std::int32_t>{0, 0, 1, 2, 3, 4, 5, 0}});
  EXPECT_GT(plan.balancedness, 0.9);
}

TEST(EnginePlan, RefusesWhatMakesNoSense) {
  const auto refuses = [](const EngineRequest& request) {
    try {
      (void)plan_for_engine(request);
    } catch (const Error& error) {
      return error.code() == ErrorCode::kInvalidArgument;
    }
    return false;
  };
  EXPECT_TRUE(refuses({.windows = {}, .shape = {.num_slots = 4, .num_ranks = 2}}));
  EXPECT_TRUE(refuses({.windows = {{1, 2}, {1}}, .shape = {.num_slots = 4, .num_ranks = 2}}));
  EXPECT_TRUE(refuses({.windows = {{1, 2}}, .shape = {.num_slots = 1, .num_ranks = 1}}));
  EXPECT_TRUE(refuses({.windows = {{1, 2}}, .shape = {.num_slots = 2, .num_ranks = 0}}));
  EXPECT_TRUE(refuses(
      {.windows = {{1, 2}}, .shape = {.num_slots = 2, .num_ranks = 1}, .current = std::vector<std::int32_t>{0, 0}}));
}

}  // namespace
}  // namespace epistle::balance
