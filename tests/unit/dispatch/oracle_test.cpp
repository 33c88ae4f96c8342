// The order of the oracle's sums, on tokens whose sums differ by the order.
#include "dispatch/reference/oracle.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

namespace epistle::reference {
namespace {

constexpr std::int32_t kExpertsPerRank = 2;
constexpr int kRanks = 4;

ResolvedConfig config_of(SumOrder order, OutputLayout layout) {
  ResolvedConfig config;
  config.hidden = 4;
  config.num_experts = kRanks * kExpertsPerRank;
  config.combine_dtype = DType::kFp32;
  config.combine_hidden = 4;
  config.order = order;
  config.layout = layout;
  return config;
}

/// The ranks whose rows combine_token reads, in the order in which it does; and the sum.
struct Sum {
  std::vector<int> ranks;
  float value = 0.0F;
};

/// `rows`: where a position's row is; -1 = dropped. Rank r's rows are 2^24, 1, -2^24 and 1/2 in turn, so that the sum
/// tells the order.
Sum sum_of(SumOrder order, OutputLayout layout, const std::vector<std::int32_t>& experts,
           const std::vector<std::int32_t>& rows, int domain_size = kRanks) {
  constexpr std::array<float, kRanks> kValues = {16777216.0F, 1.0F, -16777216.0F, 0.5F};
  const std::vector<float> weights(experts.size(), 1.0F);
  Sum sum;
  const RowReader reader = [&](int rank, std::int32_t /*row*/, std::vector<float>& values) {
    sum.ranks.push_back(rank);
    values.assign(4, kValues[static_cast<std::size_t>(rank)]);
  };
  std::array<float, 4> out{};
  std::vector<std::int32_t> rank_of_position;
  for (const std::int32_t expert : experts) rank_of_position.push_back(expert / kExpertsPerRank);
  ResolvedConfig config = config_of(order, layout);
  config.domain_size = domain_size < kRanks ? domain_size : 0;
  combine_token(config, {.ranks = rank_of_position, .weights = weights, .dst_row = rows}, reader,
                /*weighted=*/false, reinterpret_cast<std::byte*>(out.data()));
  sum.value = out[0];
  return sum;
}

// Experts on the ranks 2, 0, 1, 2, 3 by position: rank 2 comes first and, under deepep_v2, where it was last.
const std::vector<std::int32_t> kExperts = {4, 0, 2, 5, 6};

TEST(Oracle, OrdersOfTokenRows) {
  const std::vector<std::int32_t> rows = {0, 0, 0, 0, 0};
  const auto ranks_of = [&](SumOrder order) { return sum_of(order, OutputLayout::kTokenMajor, kExperts, rows).ranks; };
  EXPECT_EQ(ranks_of(SumOrder::kHierarchical), (std::vector<int>{0, 1, 2, 3}));
  EXPECT_EQ(ranks_of(SumOrder::kFlat), (std::vector<int>{2, 0, 1, 3}));
  EXPECT_EQ(ranks_of(SumOrder::kDeepEpV2), (std::vector<int>{0, 1, 2, 3}));
  // The last place of rank 0 is behind that of rank 1.
  const std::vector<std::int32_t> experts = {0, 2, 1, 6, 4};
  EXPECT_EQ(sum_of(SumOrder::kDeepEpV2, OutputLayout::kTokenMajor, experts, rows).ranks,
            (std::vector<int>{1, 0, 3, 2}));
  EXPECT_EQ(sum_of(SumOrder::kFlat, OutputLayout::kTokenMajor, experts, rows).ranks, (std::vector<int>{0, 1, 3, 2}));
}

TEST(Oracle, OrdersOfExpertRows) {
  const std::vector<std::int32_t> rows = {0, 1, 2, 3, 4};
  const auto ranks_of = [&](SumOrder order, const std::vector<std::int32_t>& experts) {
    return sum_of(order, OutputLayout::kExpertMajor, experts, rows).ranks;
  };
  // Rank 3 is last in the top-k and not the highest that has a place behind it.
  const std::vector<std::int32_t> experts = {6, 4, 7, 0, 5};  // ranks 3, 2, 3, 0, 2
  EXPECT_EQ(ranks_of(SumOrder::kHierarchical, experts), (std::vector<int>{0, 2, 2, 3, 3}));
  EXPECT_EQ(ranks_of(SumOrder::kFlat, experts), (std::vector<int>{3, 2, 3, 0, 2}));
  EXPECT_EQ(ranks_of(SumOrder::kDeepEpV2, experts), (std::vector<int>{3, 3, 0, 2, 2}));
}

TEST(Oracle, DroppedAssignmentsHaveNoPlace) {
  // The last assignment of rank 2 was dropped: its place is that of the one before.
  const std::vector<std::int32_t> experts = {4, 0, 2, 5};  // ranks 2, 0, 1, 2
  EXPECT_EQ(sum_of(SumOrder::kDeepEpV2, OutputLayout::kExpertMajor, experts, {0, 0, 0, 0}).ranks,
            (std::vector<int>{0, 1, 2, 2}));
  EXPECT_EQ(sum_of(SumOrder::kDeepEpV2, OutputLayout::kExpertMajor, experts, {0, 0, 0, -1}).ranks,
            (std::vector<int>{2, 0, 1}));
}

TEST(Oracle, OrdersHaveBitsOfTheirOwn) {
  const std::vector<std::int32_t> rows = {0, 1, 2, 3, 4};
  const auto value_of = [&](SumOrder order, const std::vector<std::int32_t>& experts) {
    return sum_of(order, OutputLayout::kExpertMajor, experts, {rows.begin(), rows.begin() + experts.size()}).value;
  };
  const std::vector<std::int32_t> twice = {4, 0, 2, 5, 6};  // ranks 2, 0, 1, 2, 3
  // 2^24 + 1 = 2^24, then 2^24 - (2^24 + 2^24) = -2^24, and half of one more is lost.
  EXPECT_EQ(value_of(SumOrder::kHierarchical, twice), -16777216.0F);
  // (-2^24 + 2^24) + 1 - 2^24 = -2^24 + 1, and half of one more rounds to -2^24 + 2.
  EXPECT_EQ(value_of(SumOrder::kFlat, twice), -16777214.0F);
  const std::vector<std::int32_t> once = {2, 4, 0, 6};  // ranks 1, 2, 0, 3
  // (2^24 + 1) - 2^24 = 0.
  EXPECT_EQ(value_of(SumOrder::kHierarchical, once), 0.5F);
  // (1 - 2^24) + 2^24 = 1.
  EXPECT_EQ(value_of(SumOrder::kDeepEpV2, once), 1.5F);
}

TEST(Oracle, DomainsAreSummedAndRoundedOneByOne) {
  const std::vector<std::int32_t> experts = {2, 4, 0, 6};  // ranks 1, 2, 0, 3
  const std::vector<std::int32_t> rows = {0, 0, 0, 0};
  for (const OutputLayout layout : {OutputLayout::kTokenMajor, OutputLayout::kExpertMajor}) {
    const auto value_of = [&](int domain_size) {
      const Sum sum = sum_of(SumOrder::kDomains, layout, experts, rows, domain_size);
      EXPECT_EQ(sum.ranks, (std::vector<int>{0, 1, 2, 3}));
      return sum.value;
    };
    // (2^24 + 1) and (-2^24 + 1/2) both lose what is small; one after the other only the 1 is lost.
    EXPECT_EQ(value_of(2), 0.0F);
    EXPECT_EQ(value_of(1), 0.5F);
    EXPECT_EQ(value_of(4), 0.5F);
    EXPECT_EQ(sum_of(SumOrder::kHierarchical, layout, experts, rows, 2).value, 0.5F);
  }
}

}  // namespace
}  // namespace epistle::reference
