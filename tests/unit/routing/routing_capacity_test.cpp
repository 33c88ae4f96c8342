#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include "epistle/error.hpp"
#include "epistle/routing.hpp"

namespace epistle {
namespace {

using Counts = std::vector<std::int64_t>;
using Ids = std::vector<std::int32_t>;
using Weights = std::vector<float>;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// A top-1 table of tokens that all want expert 0 of 2.
RoutingTable one_hot_expert(const Weights& weights) {
  return {.num_tokens = static_cast<std::int64_t>(weights.size()),
          .num_experts = 2,
          .top_k = 1,
          .expert_ids = Ids(weights.size(), 0),
          .weights = weights};
}

TEST(ApplyCapacity, KeepsTheHighestWeights) {
  RoutingTable table = one_hot_expert({0.1F, 0.9F, 0.5F, 0.7F});
  const CapacityResult result = apply_capacity(table, {.factor = 1.0, .policy = DropPolicy::kProbability});
  EXPECT_EQ(result.capacity, 2);
  EXPECT_EQ(result.dropped, 2);
  EXPECT_EQ(result.dropped_per_expert, (Counts{2, 0}));
  EXPECT_EQ(result.padding_per_expert, (Counts{0, 0}));
  EXPECT_EQ(table.expert_ids, (Ids{-1, 0, -1, 0}));
  EXPECT_EQ(table.weights, (Weights{0.0F, 0.9F, 0.0F, 0.7F}));
}

TEST(ApplyCapacity, KeepsTheEarliestTokens) {
  RoutingTable table = one_hot_expert({0.1F, 0.9F, 0.5F, 0.7F});
  const CapacityResult result = apply_capacity(table, {.factor = 1.0, .policy = DropPolicy::kPosition, .pad = true});
  EXPECT_EQ(table.expert_ids, (Ids{0, 0, -1, -1}));
  EXPECT_EQ(result.padding_per_expert, (Counts{0, 2}));
}

TEST(ApplyCapacity, TiesGoToTheEarlierToken) {
  RoutingTable table = one_hot_expert({0.5F, 0.5F, 0.9F, 0.5F});
  (void)apply_capacity(table, {.factor = 1.0});
  EXPECT_EQ(table.expert_ids, (Ids{0, -1, 0, -1}));
}

TEST(ApplyCapacity, NanRanksBelowEveryNumber) {
  RoutingTable table = one_hot_expert({kNan, -kInfinity, kNan, 0.0F, kInfinity, -1.0F});
  (void)apply_capacity(table, {.factor = 4.0 / 3.0});
  EXPECT_EQ(table.expert_ids, (Ids{-1, 0, -1, 0, 0, 0}));

  RoutingTable all_nan = one_hot_expert({kNan, kNan, kNan, kNan});
  (void)apply_capacity(all_nan, {.factor = 1.0});
  EXPECT_EQ(all_nan.expert_ids, (Ids{0, 0, -1, -1}));
  EXPECT_TRUE(std::isnan(all_nan.weights[0]));
  EXPECT_EQ(all_nan.weights[2], 0.0F);
}

TEST(ApplyCapacity, EntriesKeepTheirPlaces) {
  RoutingTable table{.num_tokens = 3,
                     .num_experts = 3,
                     .top_k = 2,
                     .expert_ids = {0, 1, 0, 2, 1, 0},
                     .weights = {0.6F, 0.4F, 0.5F, 0.5F, 0.7F, 0.3F}};
  const CapacityResult result = apply_capacity(table, {.factor = 1.0, .pad = true});
  EXPECT_EQ(result.capacity, 2);
  EXPECT_EQ(table.expert_ids, (Ids{0, 1, 0, 2, 1, -1}));
  EXPECT_EQ(table.weights, (Weights{0.6F, 0.4F, 0.5F, 0.5F, 0.7F, 0.0F}));
  EXPECT_EQ(result.dropped_per_expert, (Counts{1, 0, 0}));
  EXPECT_EQ(result.padding_per_expert, (Counts{0, 0, 1}));
}

TEST(ApplyCapacity, EntriesWithoutExpertTakeNoRoom) {
  RoutingTable table = one_hot_expert({0.1F, 0.2F, 0.3F, 0.4F});
  table.expert_ids = {-1, 0, -1, 0};
  const CapacityResult result = apply_capacity(table, {.factor = 1.0});
  EXPECT_EQ(result.dropped, 0);
  EXPECT_EQ(table.expert_ids, (Ids{-1, 0, -1, 0}));
  EXPECT_EQ(table.weights[0], 0.1F);
}

TEST(ApplyCapacity, CapacityIsRoundedUp) {
  const auto capacity_of = [](std::int64_t num_tokens, std::int32_t num_experts, double factor) {
    RoutingTable table{num_tokens, num_experts, 1, Ids(static_cast<std::size_t>(num_tokens), kNoExpert),
                       Weights(static_cast<std::size_t>(num_tokens), 0.0F)};
    return apply_capacity(table, {.factor = factor}).capacity;
  };
  EXPECT_EQ(capacity_of(10, 3, 1.0), 4);
  EXPECT_EQ(capacity_of(9, 3, 1.0), 3);
  EXPECT_EQ(capacity_of(9, 3, 1.25), 4);
  EXPECT_EQ(capacity_of(1, 512, 0.01), 1);
  EXPECT_EQ(capacity_of(0, 8, 1.0), 0);
  EXPECT_EQ(capacity_of(4, 2, 1000.0), 2000);
}

TEST(ApplyCapacity, PadsBeyondTheNumberOfTokens) {
  RoutingTable table = one_hot_expert({0.5F, 0.5F});
  const CapacityResult result = apply_capacity(table, {.factor = 10.0, .pad = true});
  EXPECT_EQ(result.dropped, 0);
  EXPECT_EQ(result.padding_per_expert, (Counts{8, 10}));
}

TEST(ApplyCapacity, RejectsBadFactorsAndTables) {
  const auto expect_rejected = [](RoutingTable table, double factor) {
    const RoutingTable before = table;
    try {
      (void)apply_capacity(table, {.factor = factor});
      ADD_FAILURE() << "accepted factor " << factor;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument) << error.what();
    }
    EXPECT_EQ(table.expert_ids, before.expert_ids);
  };
  const RoutingTable good = one_hot_expert({0.5F, 0.5F});
  for (const double factor : {0.0, -1.0, std::nan(""), std::numeric_limits<double>::infinity(), 1e300}) {
    expect_rejected(good, factor);
  }
  RoutingTable bad = good;
  bad.expert_ids[1] = 2;
  expect_rejected(bad, 1.0);
  bad.expert_ids[1] = -2;
  expect_rejected(bad, 1.0);
  bad = good;
  bad.weights.pop_back();
  expect_rejected(bad, 1.0);
  bad = good;
  bad.top_k = 0;
  expect_rejected(bad, 1.0);
}

}  // namespace
}  // namespace epistle
