#include "cost/exchange_counts.hpp"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/error.hpp"
#include "epistle/routing.hpp"

namespace epistle::test {
namespace {

/// Distinct groups per token of the router's generator.
double drawn_groups(std::int32_t num_experts, std::int32_t top_k, std::int32_t num_groups, const GroupLimit& limit) {
  constexpr std::int64_t kTokens = 20000;
  const RoutingTable table =
      generate_routing({.kind = RoutingKind::kForcedRandom}, {.num_tokens = kTokens,
                                                              .num_experts = num_experts,
                                                              .top_k = top_k,
                                                              .num_groups = limit.num_groups,
                                                              .groups_per_token = limit.groups_per_token});
  double sum = 0.0;
  for (auto token = table.expert_ids.begin(); token != table.expert_ids.end(); token += top_k) {
    std::set<std::int32_t> groups;
    std::for_each(token, token + top_k, [&](std::int32_t id) { groups.insert(id * num_groups / num_experts); });
    sum += static_cast<double>(groups.size());
  }
  return sum / static_cast<double>(kTokens);
}

TEST(ExchangeCounts, DistinctGroupsAreThoseOfThePublishedTable) {
  // 256 experts, top 8: 1.99, 3.61, 5.30, 6.52, 7.27 and 7.68 at 2 to 64 groups.
  const double expected[] = {1.99, 3.61, 5.30, 6.52, 7.27, 7.68};
  double groups = 2;
  for (const double distinct : expected) {
    EXPECT_NEAR(expected_distinct_groups(256, 8, groups), distinct, 0.006) << groups;
    groups *= 2;
  }
  EXPECT_EQ(expected_distinct_groups(256, 8, 1), 1.0);
  EXPECT_EQ(expected_distinct_groups(256, 8, 256), 8.0);
  EXPECT_EQ(expected_distinct_groups(8, 8, 4), 4.0);
}

TEST(ExchangeCounts, AreThoseOfDrawnTokens) {
  for (const std::int32_t groups : {2, 4, 8, 16, 32}) {
    EXPECT_NEAR(expected_distinct_groups(256, 8, groups) / drawn_groups(256, 8, groups, {}), 1.0, 0.01) << groups;
    // DeepSeek-V3: four of eight groups.
    const GroupLimit limit{.num_groups = 8, .groups_per_token = 4};
    EXPECT_NEAR(expected_distinct_groups(256, 8, groups, limit) / drawn_groups(256, 8, groups, limit), 1.0, 0.01)
        << groups;
  }
}

TEST(ExchangeCounts, GroupLimitedRoutersUseNearlyAllGroupsThatTheyChoose) {
  // DeepSeek-V3's top 8 in 4 of 8 groups: groups are chosen by their best experts, so 3.95 of the 4 are used under even
  // scores, where groups chosen by chance would use 3.64.
  const GroupLimit limit{.num_groups = 8, .groups_per_token = 4};
  EXPECT_NEAR(expected_distinct_groups(256, 8, 8, limit), 3.953, 0.004);
  EXPECT_EQ(expected_distinct_groups(256, 8, 1, limit), 1.0);
  EXPECT_NEAR(expected_distinct_groups(256, 8, 256, limit), 8.0, 1e-9);
  // One group is left: as a model of its experts alone.
  EXPECT_NEAR(expected_distinct_groups(64, 4, 32, {.num_groups = 4, .groups_per_token = 1}),
              expected_distinct_groups(16, 4, 8), 1e-9);
}

TEST(ExchangeCounts, GroupsOfUnequalSizeAreCountedByTheirSizes) {
  // 3 experts on 2 ranks, one drawn, then two: ranks of two and of one.
  EXPECT_NEAR(expected_distinct_groups(3, 1, 2), 1.0, 1e-12);
  EXPECT_NEAR(expected_distinct_groups(3, 2, 2), 1.0 + 2.0 / 3, 1e-12);
  EXPECT_NEAR(expected_distinct_groups(256, 8, 6), expected_distinct_groups(std::vector<double>(256, 1.0), 8, 6), 1e-6);
}

TEST(ExchangeCounts, InclusionAddsUpAndKeepsTheOrder) {
  for (const double exponent : {0.0, 0.5, 1.2}) {
    const std::vector<double> popularity = zipf_popularity(128, exponent);
    ASSERT_EQ(popularity.size(), 128U);
    const std::vector<double> inclusion = inclusion_probabilities(popularity, 8);
    EXPECT_NEAR(std::accumulate(inclusion.begin(), inclusion.end(), 0.0), 8.0, 1e-5);
    EXPECT_NEAR(expected_distinct_groups(popularity, 8, 1), 1.0, 1e-5);
    EXPECT_GE(busiest_rank_factor(inclusion, 16), 1.0 - 1e-6);
    EXPECT_NEAR(busiest_rank_factor(inclusion, 1), 1.0, 1e-12);
  }
  EXPECT_NEAR(busiest_rank_factor(inclusion_probabilities(zipf_popularity(128, 0.0), 8), 16), 1.0, 1e-6);
}

TEST(ExchangeCounts, RefuseNonsense) {
  EXPECT_THROW((void)expected_distinct_groups(8, 9, 2), Error);
  EXPECT_THROW((void)expected_distinct_groups(8, 2, 0), Error);
  EXPECT_THROW((void)inclusion_probabilities(std::vector<double>(4, 0.0), 2), Error);
  EXPECT_THROW((void)expected_distinct_groups(256, 8, 4, {.num_groups = 256, .groups_per_token = 4}), Error);
}

}  // namespace
}  // namespace epistle::test
