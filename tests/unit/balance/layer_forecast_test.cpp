// Layers that follow from those before are foretold; what has nothing to do with them is left alone; and nothing is
// taken from what is still to come.
#include "balance/layer_forecast.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "balance/replay.hpp"
#include "routing/philox.hpp"

namespace epistle::balance {
namespace {

constexpr std::int32_t kExperts = 16;
constexpr std::int32_t kTopK = 2;
constexpr std::int64_t kTokens = 4096;

/// Every token has a subject; of these there are eight, and which ones come changes from 256 tokens to 256 tokens.
std::vector<std::int32_t> subjects_of(std::uint32_t seed) {
  std::vector<std::int32_t> subjects;
  for (std::int64_t token = 0; token < kTokens; ++token) {
    PhiloxStream of_part(seed, RandomAddress{.token = static_cast<std::uint32_t>(token / 256)});
    const auto first = static_cast<std::int32_t>(of_part.below(8));
    PhiloxStream stream(seed + 1, RandomAddress{.token = static_cast<std::uint32_t>(token)});
    subjects.push_back(stream.below(4) < 3 ? first : static_cast<std::int32_t>(stream.below(8)));
  }
  return subjects;
}

/// A layer in which every subject has two experts of its own, one time in four another one in place of the second.
RoutingTable layer_of(const std::vector<std::int32_t>& subjects, std::uint32_t layer) {
  RoutingTable table{.num_tokens = kTokens, .num_experts = kExperts, .top_k = kTopK, .expert_ids = {}, .weights = {}};
  for (std::int64_t token = 0; token < kTokens; ++token) {
    PhiloxStream stream(100 + layer, RandomAddress{.token = static_cast<std::uint32_t>(token)});
    const auto shift = static_cast<std::int32_t>(5 * layer);
    const std::int32_t first = (2 * subjects[static_cast<std::size_t>(token)] + shift) % kExperts;
    const std::int32_t second =
        stream.below(4) == 0 ? (first + 2 + static_cast<std::int32_t>(stream.below(13))) % kExperts : first + 1;
    table.expert_ids.push_back(first);
    table.expert_ids.push_back(second % kExperts);
  }
  return table;
}

std::vector<double> parts_of(const RoutingTable& table, std::int64_t begin, std::int64_t end) {
  const RoutingTable* const tables[] = {&table};
  std::vector<double> parts = count_inputs(tables, begin, end);
  const double sum = std::accumulate(parts.begin(), parts.end(), 0.0);
  for (double& part : parts) part /= sum;
  return parts;
}

double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0.0;
  for (std::size_t idx = 0; idx < a.size(); ++idx) sum += std::abs(a[idx] - b[idx]);
  return sum;
}

struct Errors {
  double of_mean = 0.0;
  double of_forecast = 0.0;
};

/// Learnt on the first half; the sum over 256 tokens at a time of the second.
Errors errors_of(const RoutingTable& before, const RoutingTable& layer) {
  const RoutingTable* const tables[] = {&before};
  const LayerForecast forecast(tables, layer, 0, kTokens / 2);
  const std::vector<double> mean = parts_of(layer, 0, kTokens / 2);
  const std::vector<double> usual = parts_of(before, 0, kTokens / 2);
  Errors errors;
  for (std::int64_t begin = kTokens / 2; begin < kTokens; begin += 256) {
    const std::vector<double> came = parts_of(layer, begin, begin + 256);
    errors.of_mean += distance(mean, came);
    errors.of_forecast += distance(forecast.foretell(mean, parts_of(before, begin, begin + 256), usual), came);
  }
  return errors;
}

TEST(LayerForecast, LayersThatFollowFromThoseBeforeAreForetold) {
  for (std::uint32_t seed = 1; seed <= 5; ++seed) {
    const std::vector<std::int32_t> subjects = subjects_of(seed);
    const Errors errors = errors_of(layer_of(subjects, 0), layer_of(subjects, 1));
    EXPECT_LT(errors.of_forecast, 0.35 * errors.of_mean) << seed;
  }
}

TEST(LayerForecast, LayersThatHaveNothingInCommonForetellNothing) {
  for (std::uint32_t seed = 1; seed <= 5; ++seed) {
    const Errors errors = errors_of(layer_of(subjects_of(seed + 50), 0), layer_of(subjects_of(seed), 1));
    EXPECT_LT(errors.of_forecast, 1.1 * errors.of_mean) << seed;
  }
}

TEST(LayerForecast, UsualInputsLeaveLoadsAsTheyAre) {
  const std::vector<std::int32_t> subjects = subjects_of(9);
  const RoutingTable before = layer_of(subjects, 0);
  const RoutingTable layer = layer_of(subjects, 1);
  const RoutingTable* const tables[] = {&before};
  const LayerForecast forecast(tables, layer, 0, kTokens / 2);
  const std::vector<double> mean = parts_of(layer, 0, kTokens / 2);
  const std::vector<double> usual = parts_of(before, 0, kTokens / 2);
  EXPECT_EQ(forecast.foretell(mean, usual, usual), mean);
}

ReplayRules rules_with(std::vector<const RoutingTable*> before) {
  ReplayRules rules;
  rules.plan.cluster = Cluster::even(4, 48);  // three replicas of each: quotas decide
  rules.batch_tokens = 256;
  rules.layers_before = std::move(before);
  return rules;
}

TEST(LayerForecast, BalancesWhatThePastAloneCannot) {
  const std::vector<std::int32_t> subjects = subjects_of(3);
  const RoutingTable before = layer_of(subjects, 0);
  const RoutingTable layer = layer_of(subjects, 1);
  const ReplayResult past = replay(layer, 1, Policy::kIncremental, rules_with({}));
  const ReplayResult foretold = replay(layer, 1, Policy::kIncremental, rules_with({&before}));
  EXPECT_FALSE(past.is_foretold);
  EXPECT_TRUE(foretold.is_foretold);
  EXPECT_GT(foretold.balancedness, past.balancedness + 0.03);
  EXPECT_EQ(foretold.replica_choice, ReplicaChoice::kHash);
}

TEST(LayerForecast, WhatComesLaterChangesNothing) {
  const std::vector<std::int32_t> subjects = subjects_of(4);
  RoutingTable before = layer_of(subjects, 0);
  RoutingTable layer = layer_of(subjects, 1);
  const ReplayResult result = replay(layer, 1, Policy::kIncremental, rules_with({&before}));
  for (RoutingTable* table : {&before, &layer}) {
    std::fill(table->expert_ids.end() - std::ptrdiff_t{256} * kTopK, table->expert_ids.end(), 7);
  }
  const ReplayResult other = replay(layer, 1, Policy::kIncremental, rules_with({&before}));
  ASSERT_EQ(other.batches.size(), result.batches.size());
  EXPECT_NE(other.batches.back(), result.batches.back());
  EXPECT_TRUE(std::equal(result.batches.begin(), result.batches.end() - 1, other.batches.begin()));
}

TEST(LayersBefore, KeepsTheLatestThatAForecastUsesAndOnlyEarlierOnes) {
  const RoutingTable table = layer_of(subjects_of(1), 0);
  LayersBefore before;
  for (std::int32_t layer = 0; layer < 40; ++layer) before.add(layer, table);
  EXPECT_EQ(before.of(40, kTokens).size(), static_cast<std::size_t>(kMaxForecastInputs / kExperts));
  EXPECT_EQ(before.of(30, kTokens).size(), 22U);
  EXPECT_TRUE(before.of(40, kTokens - 1).empty()) << "other tokens";
  EXPECT_TRUE(before.of(0, kTokens).empty());
}

}  // namespace
}  // namespace epistle::balance
