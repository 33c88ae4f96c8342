// Sequences of steps: drifting routing, and a balancing policy that follows it.
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/error.hpp"
#include "epistle/routing.hpp"

#include "simulate/requests_for_tests.hpp"

namespace epistle::simulate::test {
namespace {

SimulateRequest skewed(balance::Policy policy, std::int64_t num_steps) {
  SimulateRequest request = small_request({.routing = "zipf:1", .num_ranks = 8, .tokens_per_rank = 256});
  request.num_slots = 80;
  request.num_steps = num_steps;
  request.loop.policy = policy;
  request.loop.plan.expert_bytes = 1000;
  return request;
}

double mean_busiest(const SimulateResult& result) {
  double sum = 0.0;
  for (const StepResult& step : result.steps) sum += step.busiest_rank_factor;
  return sum / static_cast<double>(result.steps.size());
}

TEST(TokenSource, StartsWithTheTablesOfTheGenerators) {
  const SimulateRequest request = small_request({.routing = "zipf:0.7"});
  TokenSource source(request.tokens);
  source.begin_step(0);
  const RoutingTable table = generate_routing(
      request.tokens.routing, {.num_tokens = 64, .num_experts = 64, .top_k = 4, .rank = 3, .num_ranks = 16});
  const auto ids = source.ids(3);
  EXPECT_EQ(std::vector<std::int32_t>(ids.begin(), ids.end()), table.expert_ids);
}

TEST(TokenSource, GoesOnWithOtherTokensUnderTheSamePopularities) {
  const SimulateRequest request = small_request({.routing = "zipf:1", .num_ranks = 2, .tokens_per_rank = 4096});
  TokenSource source(request.tokens);
  std::vector<std::vector<double>> loads;
  for (const std::int64_t step : {0, 1}) {
    source.begin_step(step);
    loads.emplace_back(64, 0.0);
    for (const std::int32_t expert : source.ids(0)) loads.back()[static_cast<std::size_t>(expert)] += 1.0 / 4096;
  }
  EXPECT_NE(loads[0], loads[1]);
  for (std::size_t expert = 0; expert < 64; ++expert) EXPECT_NEAR(loads[0][expert], loads[1][expert], 0.05);
}

TEST(TokenSource, DriftMovesPopularityAndKeepsRouterGroups) {
  SimulateRequest request = small_request({.routing = "zipf:1"});
  request.tokens.drift = 0.5;
  TokenSource source(request.tokens);
  source.begin_step(0);
  const std::vector<double> before = source.popularity().value();
  source.begin_step(1);
  const std::vector<double> after = source.popularity().value();
  EXPECT_NE(before, after);
  EXPECT_NEAR(std::accumulate(before.begin(), before.end(), 0.0), std::accumulate(after.begin(), after.end(), 0.0),
              1e-3);

  request.tokens.routing = RoutingSpec::parse("forced-random");
  request.tokens.num_groups = 8;
  request.tokens.groups_per_token = 2;
  TokenSource limited(request.tokens);
  limited.begin_step(0);
  limited.begin_step(1);
  const std::span<const std::int32_t> ids = limited.ids(0);
  for (std::size_t begin = 0; begin < ids.size(); begin += 4) {
    std::vector<bool> groups(8, false);
    for (const std::int32_t expert : ids.subspan(begin, 4)) groups[static_cast<std::size_t>(expert / 8)] = true;
    EXPECT_LE(std::count(groups.begin(), groups.end(), true), 2);
  }
}

TEST(Steps, PoliciesEvenTheRanks) {
  const double none = mean_busiest(run(skewed(balance::Policy::kNone, 4)));
  const double eplb = mean_busiest(run(skewed(balance::Policy::kEplb, 4)));
  const double incremental = mean_busiest(run(skewed(balance::Policy::kIncremental, 4)));
  const double per_batch = mean_busiest(run(skewed(balance::Policy::kPerBatch, 4)));
  EXPECT_GT(none, 1.3);
  EXPECT_LT(eplb, 1.2);
  EXPECT_LT(incremental, 1.15);
  EXPECT_LT(per_batch, 1.01);
  EXPECT_LT(per_batch, incremental);
}

TEST(Steps, APolicyFollowsADriftAndSaysWhatItCopies) {
  SimulateRequest request = skewed(balance::Policy::kIncremental, 6);
  request.tokens.drift = 0.2;
  const SimulateResult follows = run(request);
  request.loop.replan_every = 100;
  const SimulateResult stays = run(request);
  EXPECT_LT(follows.steps.back().busiest_rank_factor, stays.steps.back().busiest_rank_factor);
  EXPECT_GT(follows.steps.front().copies.num_copies, 0);
  EXPECT_EQ(follows.steps.front().copies.bytes, 1000 * follows.steps.front().copies.num_copies);
  EXPECT_EQ(stays.steps.back().copies.num_copies, 0);
}

TEST(Steps, AGivenPlacementIsKept) {
  SimulateRequest request = small_request({.num_ranks = 4, .num_experts = 4, .top_k = 1});
  request.placement = balance::SlotTable{.begin = {0, 4, 4, 4, 4}, .expert = {0, 1, 2, 3}};
  const SimulateResult result = run(request);
  EXPECT_EQ(result.steps.front().busiest_rank_factor, 4.0);
  EXPECT_EQ(result.ranks.at(0).assignments, 4 * 64);
  EXPECT_EQ(result.placement, *request.placement);

  request.placement->begin = {0, 4};
  EXPECT_THROW((void)run(request), Error);
}

TEST(Steps, CopiesOfExpertsShareTheirTokens) {
  SimulateRequest request = small_request({.num_ranks = 8, .tokens_per_rank = 512, .num_experts = 4, .top_k = 1});
  request.num_slots = 8;
  // Four experts, two slots each: every rank gets an eighth.
  EXPECT_LT(run_step(request).busiest_rank_factor, 1.15);
  request.num_slots = 40;
  EXPECT_THROW((void)run(request), Error) << "a rank would hold an expert twice";
}

TEST(Steps, RefuseNonsense) {
  SimulateRequest request = small_request();
  request.tokens.num_ranks = kMaxSimulatedRanks + 1;
  EXPECT_THROW((void)run(request), Error);
  request = small_request();
  request.tokens.top_k = 100;
  EXPECT_THROW((void)run(request), Error);
  request = small_request();
  request.dispatchers = {"carrier_pigeon"};
  EXPECT_THROW((void)run(request), Error);
  request = small_request();
  request.tokens.drift = 2;
  EXPECT_THROW((void)run(request), Error);
}

}  // namespace
}  // namespace epistle::simulate::test
