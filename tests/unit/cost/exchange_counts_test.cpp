#include "cost/exchange_counts.hpp"

#include <algorithm>
#include <numeric>
#include <random>
#include <set>

#include <gtest/gtest.h>

#include "epistle/error.hpp"

namespace epistle::test {
namespace {

/// Distinct groups per token where experts are drawn one by one.
double drawn_groups(std::int32_t num_experts, std::int32_t top_k, std::int32_t num_groups, const GroupLimit& limit) {
  std::mt19937 random(7);
  constexpr int kTokens = 20000;
  std::vector<std::int32_t> experts;
  std::vector<std::int32_t> router_groups(static_cast<std::size_t>(limit.num_groups));
  std::iota(router_groups.begin(), router_groups.end(), 0);
  const std::int32_t group_experts = num_experts / limit.num_groups;
  double sum = 0.0;
  for (int token = 0; token < kTokens; ++token) {
    std::shuffle(router_groups.begin(), router_groups.end(), random);
    experts.clear();
    for (std::int32_t chosen = 0; chosen < limit.groups_per_token; ++chosen) {
      for (std::int32_t idx = 0; idx < group_experts; ++idx) {
        experts.push_back(router_groups[static_cast<std::size_t>(chosen)] * group_experts + idx);
      }
    }
    std::shuffle(experts.begin(), experts.end(), random);
    std::set<std::int32_t> groups;
    for (std::int32_t idx = 0; idx < top_k; ++idx) {
      groups.insert(experts[static_cast<std::size_t>(idx)] * num_groups / num_experts);
    }
    sum += static_cast<double>(groups.size());
  }
  return sum / kTokens;
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

TEST(ExchangeCounts, InclusionAddsUpAndKeepsTheOrder) {
  for (const double exponent : {0.0, 0.5, 1.2}) {
    const std::vector<double> popularity = zipf_popularity(128, exponent);
    ASSERT_EQ(popularity.size(), 128U);
    const std::vector<double> inclusion = inclusion_probabilities(popularity, 8);
    EXPECT_NEAR(std::accumulate(inclusion.begin(), inclusion.end(), 0.0), 8.0, 1e-9);
    EXPECT_NEAR(expected_distinct_groups(inclusion, 1), 1.0, 1e-3);
    EXPECT_GE(busiest_rank_factor(inclusion, 16), 1.0 - 1e-12);
    EXPECT_NEAR(busiest_rank_factor(inclusion, 1), 1.0, 1e-12);
  }
  EXPECT_NEAR(busiest_rank_factor(inclusion_probabilities(zipf_popularity(128, 0.0), 8), 16), 1.0, 1e-9);
}

TEST(ExchangeCounts, RefuseNonsense) {
  EXPECT_THROW((void)expected_distinct_groups(8, 9, 2), Error);
  EXPECT_THROW((void)expected_distinct_groups(8, 2, 0), Error);
  EXPECT_THROW((void)inclusion_probabilities(std::vector<double>(4, 0.0), 2), Error);
  EXPECT_THROW((void)expected_distinct_groups(256, 8, 4, {.num_groups = 256, .groups_per_token = 4}), Error);
}

}  // namespace
}  // namespace epistle::test
