// Closed forms against tokens that are drawn: within 1% for what travels, within 3% for the busiest rank.
// bench_simulate prints the whole table, with more tokens.
#include "simulate/closed_forms.hpp"

#include <cstdint>
#include <string>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "epistle/error.hpp"
#include "epistle/routing.hpp"

#include "cost/exchange_counts.hpp"
#include "cost/recorded_sets.hpp"
#include "cost/successive_draws.hpp"
#include "simulate/requests_for_tests.hpp"
#include "support/temp_dir.hpp"

namespace epistle::simulate::test {
namespace {

constexpr std::int64_t kTestTokens = 32768;

void expect_close(const StepResult& step) {
  ASSERT_TRUE(step.closed_forms.has_value());
  EXPECT_NEAR(step.closed_forms->distinct_ranks / step.distinct_ranks, 1.0, 0.01);
  EXPECT_NEAR(step.closed_forms->distinct_domains / step.distinct_domains, 1.0, 0.01);
  EXPECT_NEAR(step.closed_forms->busiest_rank_factor / step.busiest_rank_factor, 1.0, 0.03);
}

class ClosedFormsOf : public ::testing::TestWithParam<std::string> {};

TEST_P(ClosedFormsOf, AreThoseOfDrawnTokens) {
  for (const std::int32_t ranks : {2, 6, 16, 64, 1024}) {
    SCOPED_TRACE(fmt::format("{} on {} ranks", GetParam(), ranks));
    SimulateRequest request = small_request({.routing = GetParam(),
                                             .num_ranks = ranks,
                                             .tokens_per_rank = kTestTokens / ranks,
                                             .num_experts = 256,
                                             .top_k = 8});
    request.tokens.num_groups = 8;
    request.tokens.groups_per_token = GetParam() == "forced-random" && ranks != 6 ? 4 : 8;
    expect_close(run_step(request));
  }
}

INSTANTIATE_TEST_SUITE_P(Routings, ClosedFormsOf,
                         ::testing::Values("uniform", "zipf:0.5", "zipf:1.2", "lognormal:1", "forced-random"),
                         [](const auto& test_info) {
                           std::string name = test_info.param;
                           for (char& letter : name)
                             letter = std::isalnum(static_cast<unsigned char>(letter)) ? letter : '_';
                           return name;
                         });

TEST(ClosedForms, HoldForATraceWhoseExpertsAreUsedInCompany) {
  // Every token's experts lie in two groups of eight: a histogram would say that it goes to twice as many ranks.
  const RoutingTable table = generate_routing(
      RoutingSpec::parse("forced-random"),
      {.num_tokens = 8192, .num_experts = 64, .top_k = 6, .num_groups = 8, .groups_per_token = 2, .seed = 5});
  std::string ids;
  for (std::size_t at = 0; at < table.expert_ids.size(); ++at) {
    ids +=
        fmt::format("{}{}{}", at % 6 == 0 ? (at == 0 ? "[" : ",[") : ",", table.expert_ids[at], at % 6 == 5 ? "]" : "");
  }
  const epistle::test::TempDir dir;
  const std::string trace = dir.write(
      "trace.jsonl",
      fmt::format(R"({{"layer": 0, "num_experts": 64, "top_k": 6, "num_tokens": 8192, "expert_ids": [{}]}})", ids));
  for (const std::int32_t ranks : {4, 8, 32}) {
    const SmallShape shape{
        .routing = "trace:" + trace, .num_ranks = ranks, .tokens_per_rank = 8192 / ranks, .num_experts = 0, .top_k = 0};
    expect_close(run_step(small_request(shape)));
  }
}

TEST(ClosedForms, AreGivenOnlyWhereTheyHold) {
  EXPECT_FALSE(run_step(small_request({.routing = "balanced"})).closed_forms.has_value());
  SimulateRequest copies = small_request();
  copies.num_slots = 80;
  EXPECT_FALSE(run_step(copies).closed_forms.has_value());
}

TEST(SuccessiveDraws, AreExactForTwoDrawsOfThree) {
  // By hand: experts of 1/2, 1/3, 1/6; two are drawn.
  const std::vector<double> inclusion = inclusion_probabilities(std::vector<double>{3, 2, 1}, 2);
  EXPECT_NEAR(inclusion[0], 1.0 / 2 + 1.0 / 3 * 3 / 4 + 1.0 / 6 * 3 / 5, 1e-6);
  EXPECT_NEAR(inclusion[1], 1.0 / 3 + 1.0 / 2 * 2 / 3 + 1.0 / 6 * 2 / 5, 1e-6);
  EXPECT_NEAR(inclusion[2], 1.0 / 6 + 1.0 / 2 * 1 / 3 + 1.0 / 3 * 1 / 4, 1e-6);
  const std::vector<double> hits = group_hits(std::vector<double>{3, 2, 1}, 2, std::vector<std::int32_t>{0, 1, 1}, 3);
  EXPECT_NEAR(hits[0], inclusion[0], 1e-6);
  EXPECT_NEAR(hits[1], 1.0, 1e-6);
  EXPECT_EQ(hits[2], 0.0);
}

TEST(SuccessiveDraws, PopularityOfAHistogramLeadsBackToIt) {
  const std::vector<double> popularity = epistle::zipf_popularity(64, 1.1);
  const std::vector<double> inclusion = inclusion_probabilities(popularity, 6);
  const std::vector<double> again = inclusion_probabilities(popularity_of_inclusion(inclusion), 6);
  for (std::size_t expert = 0; expert < inclusion.size(); ++expert) EXPECT_NEAR(again[expert], inclusion[expert], 1e-5);
}

TEST(RecordedSets, KnowWhichExpertsAreUsedTogether) {
  RecordedSets sets(4, 2);
  for (int round = 0; round < 50; ++round) {
    sets.add_token(std::vector<std::int32_t>{0, 1});
    sets.add_token(std::vector<std::int32_t>{2, 3});
  }
  EXPECT_EQ(sets.inclusion(), std::vector<double>(4, 0.5));
  EXPECT_EQ(sets.expected_distinct_groups(std::vector<std::int32_t>{0, 0, 1, 1}, 2), 1.0);
  EXPECT_EQ(sets.expected_distinct_groups(std::vector<std::int32_t>{0, 1, 0, 1}, 2), 2.0);
  EXPECT_EQ(sets.expected_distinct_groups(std::vector<std::int32_t>(4, 0), 1), 1.0);
  EXPECT_EQ(sets.expected_distinct_groups(std::vector<std::int32_t>{0, 1, 2, 3}, 5), 2.0);
  // A token that lost an expert, and one that lost both.
  sets.add_token(std::vector<std::int32_t>{0, kNoExpert});
  sets.add_token(std::vector<std::int32_t>{kNoExpert, kNoExpert});
  EXPECT_NEAR(sets.inclusion()[0], 51.0 / 102, 1e-12);
  EXPECT_NEAR(sets.expected_distinct_groups(std::vector<std::int32_t>{0, 1, 2, 3}, 4), 201.0 / 102, 1e-12);
  EXPECT_THROW(sets.add_token(std::vector<std::int32_t>{0}), Error);
  EXPECT_THROW((void)sets.expected_distinct_groups(std::vector<std::int32_t>{0, 1}, 2), Error);
}

TEST(RecordedSets, KeepABoundedNumberSpreadOverAllTokens) {
  // The first half of the tokens stays on one of two ranks, the other uses both.
  RecordedSets sets(4, 2);
  constexpr int kTokens = 300001;
  for (int token = 0; token < kTokens; ++token) {
    sets.add_token(token < kTokens / 2 ? std::vector<std::int32_t>{0, 1} : std::vector<std::int32_t>{0, 2});
  }
  EXPECT_EQ(sets.num_tokens(), kTokens);
  EXPECT_NEAR(sets.expected_distinct_groups(std::vector<std::int32_t>{0, 0, 1, 1}, 2), 1.5, 1e-3);
  EXPECT_NEAR(sets.inclusion()[2], 0.5, 1e-5);
}

TEST(BusiestRank, OfFewTokensIsBusierByChance) {
  const std::vector<double> means(16, 0.5);
  const std::vector<double> variances(16, 0.25);
  const double few = expected_busiest_factor(means, variances, 64);
  // The mean of the largest of 16 normal numbers is 1.766 deviations.
  EXPECT_NEAR(few, 1.0 + 1.766 * 0.5 / 8 / 0.5, 2e-3);
  EXPECT_NEAR(expected_busiest_factor(means, variances, 1e12), 1.0, 1e-4);
  EXPECT_EQ(expected_busiest_factor(means, std::vector<double>(16, 0.0), 64), 1.0);
}

}  // namespace
}  // namespace epistle::simulate::test
