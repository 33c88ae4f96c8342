#include <limits>

#include <gtest/gtest.h>

#include "epistle/error.hpp"
#include "epistle/routing.hpp"

namespace epistle {
namespace {

using Ids = std::vector<std::int32_t>;
using Weights = std::vector<float>;

TEST(GroupLimitedTopK, PlainTopKIsDescending) {
  const std::vector<float> scores = {0.1F, 0.4F, 0.2F, 0.3F, /**/ 4.0F, 1.0F, 3.0F, 2.0F};
  const RoutingTable table = group_limited_top_k(scores, 2, 4, {.top_k = 3, .normalize = false});
  EXPECT_EQ(table.expert_ids, (Ids{1, 3, 2, 0, 2, 3}));
  EXPECT_EQ(table.weights, (Weights{0.4F, 0.3F, 0.2F, 4.0F, 3.0F, 2.0F}));
  EXPECT_EQ(table.num_tokens, 2);
  EXPECT_EQ(table.num_experts, 4);
  EXPECT_EQ(table.top_k, 3);
}

TEST(GroupLimitedTopK, TiesGoToTheLowerId) {
  const std::vector<float> scores = {1.0F, 2.0F, 2.0F, 1.0F, 2.0F, -0.0F, 0.0F, 0.0F};
  const RoutingTable table = group_limited_top_k(scores, 1, 8, {.top_k = 7, .normalize = false});
  EXPECT_EQ(table.expert_ids, (Ids{1, 2, 4, 0, 3, 5, 6}));
}

TEST(GroupLimitedTopK, NormalizesByTheSum) {
  const std::vector<float> scores = {1.0F, 3.0F, 4.0F, 0.0F};
  const RoutingTable table = group_limited_top_k(scores, 1, 4, {.top_k = 3, .normalize = true});
  EXPECT_EQ(table.weights, (Weights{0.5F, 0.375F, 0.125F}));
}

TEST(GroupLimitedTopK, ScoresThatSumToZeroStay) {
  const RoutingTable table = group_limited_top_k(std::vector<float>(4, 0.0F), 1, 4, {.top_k = 2, .normalize = true});
  EXPECT_EQ(table.expert_ids, (Ids{0, 1}));
  EXPECT_EQ(table.weights, (Weights{0.0F, 0.0F}));
}

// Group 0 has the best single expert, group 1 the best pair.
TEST(GroupLimitedTopK, GroupScoreDecidesTheGroup) {
  const std::vector<float> scores = {9.0F, 0.0F, 0.0F, 6.0F, 5.0F, 1.0F};
  TopKOptions options = {.top_k = 2, .num_groups = 2, .groups_per_token = 1, .normalize = false};
  options.group_score = GroupScore::kMax;
  EXPECT_EQ(group_limited_top_k(scores, 1, 6, options).expert_ids, (Ids{0, 1}));
  options.group_score = GroupScore::kTopTwo;
  EXPECT_EQ(group_limited_top_k(scores, 1, 6, options).expert_ids, (Ids{3, 4}));
}

TEST(GroupLimitedTopK, GroupTiesGoToTheLowerGroup) {
  const std::vector<float> scores = {0.0F, 1.0F, 3.0F, 2.0F, 2.0F, 3.0F};
  const TopKOptions options = {.top_k = 1, .num_groups = 3, .groups_per_token = 1, .normalize = false};
  EXPECT_EQ(group_limited_top_k(scores, 1, 6, options).expert_ids, (Ids{2}));
}

TEST(GroupLimitedTopK, GroupsOfOneExpertScoreThemselves) {
  const std::vector<float> scores = {-3.0F, -1.0F, -2.0F};
  const TopKOptions options = {.top_k = 2, .num_groups = 3, .groups_per_token = 2, .normalize = false};
  EXPECT_EQ(group_limited_top_k(scores, 1, 3, options).expert_ids, (Ids{1, 2}));
}

TEST(GroupLimitedTopK, AllExpertsOfAllGroups) {
  const std::vector<float> scores = {1.0F, 2.0F, 3.0F, 4.0F};
  const TopKOptions options = {.top_k = 4, .num_groups = 2, .groups_per_token = 2, .normalize = false};
  EXPECT_EQ(group_limited_top_k(scores, 1, 4, options).expert_ids, (Ids{3, 2, 1, 0}));
}

TEST(GroupLimitedTopK, NoTokens) {
  const RoutingTable table = group_limited_top_k({}, 0, 4, {.top_k = 2});
  EXPECT_EQ(table.num_tokens, 0);
  EXPECT_TRUE(table.expert_ids.empty());
}

TEST(GroupLimitedTopK, RejectsWhatDoesNotFit) {
  const std::vector<float> scores(12, 1.0F);
  const auto expect_rejected = [](std::span<const float> values, std::int64_t num_tokens, std::int32_t num_experts,
                                  const TopKOptions& options) {
    try {
      (void)group_limited_top_k(values, num_tokens, num_experts, options);
      ADD_FAILURE() << "accepted top_k " << options.top_k << ", groups " << options.num_groups;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument) << error.what();
    }
  };
  expect_rejected(scores, 1, 12, {.top_k = 0});
  expect_rejected(scores, 1, 12, {.top_k = 13});
  expect_rejected(scores, 1, 12, {.top_k = 1, .num_groups = 5});
  expect_rejected(scores, 1, 12, {.top_k = 1, .num_groups = 0});
  expect_rejected(scores, 1, 12, {.top_k = 1, .num_groups = 3, .groups_per_token = 4});
  expect_rejected(scores, 1, 12, {.top_k = 1, .num_groups = 3, .groups_per_token = 0});
  expect_rejected(scores, 1, 12, {.top_k = 9, .num_groups = 3, .groups_per_token = 2});
  expect_rejected(scores, 2, 12, {.top_k = 1});
  expect_rejected(scores, -1, 12, {.top_k = 1});
  expect_rejected(scores, 1, 0, {.top_k = 1});
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> with_bad = scores;
    with_bad[7] = bad;
    expect_rejected(with_bad, 1, 12, {.top_k = 1});
  }
}

}  // namespace
}  // namespace epistle
