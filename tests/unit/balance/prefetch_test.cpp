#include "balance/prefetch.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "unit/balance/loads_for_tests.hpp"

namespace epistle::balance {
namespace {

using test::numbers;

std::int64_t sum(std::span<const std::int64_t> values) {
  return std::accumulate(values.begin(), values.end(), std::int64_t{0});
}

/// All tokens are served where their expert is, no rank fetches more than it may, and what it has it does not fetch.
void expect_whole_plan(const PrefetchPlanner& plan, const SlotTable& table, const std::vector<std::int64_t>& tokens,
                       std::int32_t max_per_rank) {
  std::vector<std::int64_t> served(tokens.size(), 0);
  std::vector<std::int64_t> loads(static_cast<std::size_t>(table.num_ranks()), 0);
  const std::vector<std::int32_t> rank_of = plan.table().rank_of_slot();
  for (std::size_t slot = 0; slot < plan.quotas().size(); ++slot) {
    ASSERT_GE(plan.quotas()[slot], 0);
    if (plan.quotas()[slot] == 0) continue;
    ASSERT_NE(plan.table().expert[slot], kEmptySlot);
    served[static_cast<std::size_t>(plan.table().expert[slot])] += plan.quotas()[slot];
    loads[static_cast<std::size_t>(rank_of[slot])] += plan.quotas()[slot];
  }
  EXPECT_EQ(served, tokens);
  EXPECT_TRUE(std::equal(loads.begin(), loads.end(), plan.rank_loads().begin()));
  std::vector<int> per_rank(static_cast<std::size_t>(table.num_ranks()), 0);
  for (const Fetch& fetch : plan.fetches()) {
    ++per_rank[static_cast<std::size_t>(fetch.rank)];
    EXPECT_EQ(plan.table().expert[static_cast<std::size_t>(fetch.slot)], fetch.expert);
    EXPECT_EQ(rank_of[static_cast<std::size_t>(fetch.slot)], fetch.rank);
  }
  for (const int count : per_rank) EXPECT_LE(count, max_per_rank);
  for (std::int32_t rank = 0; rank < table.num_ranks(); ++rank) {
    std::multiset<std::int32_t> held(plan.table().experts_of(rank).begin(), plan.table().experts_of(rank).end());
    held.erase(kEmptySlot);
    for (const std::int32_t expert : held) EXPECT_EQ(held.count(expert), 1U) << "rank " << rank;
  }
}

void expect_even(const PrefetchPlanner& plan, const Cluster& cluster) {
  const auto mean = static_cast<double>(sum(plan.rank_loads())) / cluster.num_holders();
  const std::int64_t largest = *std::max_element(plan.rank_loads().begin(), plan.rank_loads().end());
  EXPECT_LE(static_cast<double>(largest), std::ceil(mean) * 1.01);
  EXPECT_TRUE(plan.is_even());
}

TEST(Prefetch, AFewLeadSkewedLoadsToTheMean) {
  const Cluster cluster = Cluster::even(8, 64);
  const SlotTable table = SlotTable::trivial(64, cluster.slots_of_rank);
  PrefetchPlanner plan(table, 64, {.max_per_rank = 4});
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(seed);
    std::vector<std::int64_t> tokens;
    for (const double load : test::zipf_loads(seed, 64, 1.0)) tokens.push_back(static_cast<std::int64_t>(load * 1e5));
    plan.solve(tokens);
    expect_whole_plan(plan, table, tokens, 4);
    expect_even(plan, cluster);
  }
}

TEST(Prefetch, AsManyAsARankHasSlotsDoWhateverTheRouting) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    PhiloxStream stream = numbers(seed);
    const auto num_ranks = static_cast<std::int32_t>(stream.below(7)) + 2;
    const auto per_rank = static_cast<std::int32_t>(stream.below(5)) + 1;
    const Cluster cluster = Cluster::even(num_ranks, num_ranks * per_rank);
    const auto num_experts = std::max(num_ranks * per_rank - static_cast<std::int32_t>(stream.below(4)), 1);
    const SlotTable table = test::random_placement(seed, num_experts, cluster);
    PrefetchPlanner plan(table, num_experts, {.max_per_rank = per_rank});
    for (int batch = 0; batch < 3; ++batch) {
      // Many experts get nothing, some nearly all.
      std::vector<std::int64_t> tokens(static_cast<std::size_t>(num_experts), 0);
      for (std::int64_t& load : tokens) {
        if (stream.below(3) == 0) load = static_cast<std::int64_t>(stream.below(stream.below(1'000'000) + 1));
      }
      plan.solve(tokens);
      expect_whole_plan(plan, table, tokens, per_rank);
      expect_even(plan, cluster);
    }
  }
}

TEST(Prefetch, FetchesNothingWhereTheReplicasAreEnough) {
  const Cluster cluster = Cluster::even(2, 4);
  SlotTable table = SlotTable::empty(cluster.slots_of_rank);
  table.expert = {0, 1, 0, 2};
  PrefetchPlanner plan(table, 3, {.max_per_rank = 2});
  plan.solve(std::vector<std::int64_t>{100, 10, 50});
  EXPECT_TRUE(plan.fetches().empty());
  EXPECT_TRUE(plan.is_even());
  // And the next batch starts from the placement as it is.
  plan.solve(std::vector<std::int64_t>{0, 100, 0});
  ASSERT_EQ(plan.fetches().size(), 1U);
  EXPECT_EQ(plan.fetches()[0], (Fetch{.rank = 1, .expert = 1, .slot = 6}));
  plan.solve(std::vector<std::int64_t>{0, 0, 100});
  ASSERT_EQ(plan.fetches().size(), 1U);
  EXPECT_EQ(plan.fetches()[0], (Fetch{.rank = 0, .expert = 2, .slot = 2}));
}

TEST(Prefetch, SaysWhereSpareSlotsAreTooFew) {
  const Cluster cluster = Cluster::even(2, 4);
  const SlotTable table = SlotTable::trivial(4, cluster.slots_of_rank);
  PrefetchPlanner none(table, 4, {.max_per_rank = 0});
  none.solve(std::vector<std::int64_t>{50, 50, 0, 0});
  EXPECT_FALSE(none.is_even());
  EXPECT_TRUE(none.fetches().empty());
  EXPECT_EQ(none.rank_loads()[0], 100);
}

TEST(Prefetch, RanksWithoutSlotsTakeNoPart) {
  Cluster cluster;
  cluster.slots_of_rank = {2, 0, 2};
  const SlotTable table = SlotTable::trivial(4, cluster.slots_of_rank);
  PrefetchPlanner plan(table, 4, {.max_per_rank = 2});
  plan.solve(std::vector<std::int64_t>{60, 40, 0, 0});
  EXPECT_EQ(plan.rank_loads()[1], 0);
  expect_even(plan, cluster);
}

}  // namespace
}  // namespace epistle::balance
