#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include <gtest/gtest.h>

#include "epistle/error.hpp"
#include "epistle/routing.hpp"

#include "layout/dispatch_layout.hpp"

namespace epistle {
namespace {

constexpr const char* kSynthetic[] = {"uniform", "balanced", "forced-random", "zipf:1.01", "lognormal:0.6"};

RoutingTable generate(const char* spec, const RoutingRequest& request) {
  return generate_routing(RoutingSpec::parse(spec), request);
}

/// Counts over all ranks.
std::vector<std::int64_t> expert_counts(const char* spec, RoutingRequest request) {
  std::vector<std::int64_t> counts(static_cast<std::size_t>(request.num_experts), 0);
  for (request.rank = 0; request.rank < request.num_ranks; ++request.rank) {
    for (const std::int32_t id : generate(spec, request).expert_ids) ++counts.at(static_cast<std::size_t>(id));
  }
  return counts;
}

void expect_valid(const RoutingTable& table, const std::string& what) {
  const auto top_k = static_cast<std::size_t>(table.top_k);
  ASSERT_EQ(table.expert_ids.size(), static_cast<std::size_t>(table.num_tokens) * top_k) << what;
  ASSERT_EQ(table.weights.size(), table.expert_ids.size()) << what;
  for (std::size_t row = 0; row < table.expert_ids.size(); row += top_k) {
    const auto first = table.expert_ids.begin() + static_cast<std::ptrdiff_t>(row);
    const std::set<std::int32_t> distinct(first, first + table.top_k);
    ASSERT_EQ(distinct.size(), top_k) << what;
    ASSERT_GE(*distinct.begin(), 0) << what;
    ASSERT_LT(*distinct.rbegin(), table.num_experts) << what;
    double sum = 0.0;
    for (std::size_t k_idx = 0; k_idx < top_k; ++k_idx) {
      const float weight = table.weights[row + k_idx];
      ASSERT_GT(weight, 0.0F) << what;
      if (k_idx > 0) {
        ASSERT_LE(weight, table.weights[row + k_idx - 1]) << what;
      }
      sum += static_cast<double>(weight);
    }
    ASSERT_NEAR(sum, 1.0, 1e-6) << what;
  }
}

TEST(GenerateRouting, ShapesOfManyKinds) {
  struct Shape {
    std::int64_t num_tokens;
    std::int32_t num_experts;
    std::int32_t top_k;
  };
  for (const char* spec : kSynthetic) {
    for (const Shape& shape : {Shape{64, 8, 8}, Shape{64, 512, 22}, Shape{64, 1, 1}, Shape{0, 64, 6}, Shape{65, 60, 7},
                               Shape{33, 128, 1}, Shape{8, 512, 512}}) {
      const RoutingTable table = generate(spec, {.num_tokens = shape.num_tokens,
                                                 .num_experts = shape.num_experts,
                                                 .top_k = shape.top_k,
                                                 .rank = 2,
                                                 .num_ranks = 7});
      EXPECT_EQ(table.num_tokens, shape.num_tokens);
      EXPECT_EQ(table.num_experts, shape.num_experts);
      EXPECT_EQ(table.top_k, shape.top_k);
      expect_valid(table, std::string(spec) + " " + std::to_string(shape.num_experts));
    }
  }
}

TEST(GenerateRouting, ExtremeSkewEndsAndStaysDistinct) {
  for (const char* spec : {"zipf:100", "zipf:1e308", "lognormal:1000", "lognormal:1e308", "zipf:0", "lognormal:0"}) {
    expect_valid(generate(spec, {.num_tokens = 16, .num_experts = 512, .top_k = 512}), spec);
    expect_valid(generate(spec, {.num_tokens = 256, .num_experts = 512, .top_k = 22}), spec);
  }
}

// FNV-1a over the bits of the table.
std::uint64_t hash_table(const RoutingTable& table) {
  std::uint64_t hash = 0xcbf29ce484222325;
  const auto add = [&hash](std::uint32_t word) {
    for (int byte = 0; byte < 4; ++byte) hash = (hash ^ ((word >> (8 * byte)) & 0xff)) * 0x100000001b3;
  };
  for (const std::int32_t id : table.expert_ids) add(static_cast<std::uint32_t>(id));
  for (const float weight : table.weights) add(std::bit_cast<std::uint32_t>(weight));
  return hash;
}

// The bits are a promise: results recorded with one version must be repeatable with the next. A change here is a change
// of every recorded benchmark.
TEST(GenerateRouting, BitsAreFixed) {
  const std::map<std::string, std::uint64_t> expected = {
      {"uniform", 0x8829401d113d8803},   {"balanced", 0xf632477b7b7f40a9},      {"forced-random", 0x4f7a914742d6bba7},
      {"zipf:1.01", 0x6394b893e230637c}, {"lognormal:0.6", 0xbb1dbc636671280b},
  };
  for (const auto& [spec, hash] : expected) {
    const RoutingTable table = generate(spec.c_str(), {.num_tokens = 500,
                                                       .num_experts = 256,
                                                       .top_k = 8,
                                                       .num_groups = 8,
                                                       .groups_per_token = 4,
                                                       .rank = 3,
                                                       .num_ranks = 8,
                                                       .seed = 0x123456789abcdef});
    EXPECT_EQ(hash_table(table), hash) << spec << " now has 0x" << std::hex << hash_table(table);
  }
}

TEST(GenerateRouting, TokensDoNotDependOnTheirNeighbours) {
  for (const char* spec : {"uniform", "forced-random", "zipf:1.2", "lognormal:1"}) {
    const RoutingRequest request = {.num_tokens = 40, .num_experts = 64, .top_k = 6, .rank = 1, .num_ranks = 4};
    RoutingRequest shorter = request;
    shorter.num_tokens = 13;
    const RoutingTable all = generate(spec, request);
    const RoutingTable some = generate(spec, shorter);
    EXPECT_TRUE(std::equal(some.expert_ids.begin(), some.expert_ids.end(), all.expert_ids.begin())) << spec;
    EXPECT_TRUE(std::equal(some.weights.begin(), some.weights.end(), all.weights.begin())) << spec;
  }
}

TEST(GenerateRouting, RanksAndSeedsDiffer) {
  for (const char* spec : kSynthetic) {
    RoutingRequest request = {.num_tokens = 41, .num_experts = 64, .top_k = 6, .num_ranks = 2};
    const RoutingTable base = generate(spec, request);
    request.rank = 1;
    EXPECT_NE(generate(spec, request).expert_ids, base.expert_ids) << spec;
    request.rank = 0;
    request.seed = 2;
    EXPECT_NE(generate(spec, request).weights, base.weights) << spec;
  }
}

TEST(GenerateRouting, BalancedDiffersByAtMostOneOverAllRanks) {
  for (const auto& [num_experts, top_k] : {std::pair{64, 6}, {256, 8}, {512, 22}, {60, 7}, {8, 8}, {7, 3}, {1, 1}}) {
    for (const std::int64_t num_tokens : {1, 5, 64, 77}) {
      const auto counts = expert_counts(
          "balanced", {.num_tokens = num_tokens, .num_experts = num_experts, .top_k = top_k, .num_ranks = 5});
      const auto [least, most] = std::minmax_element(counts.begin(), counts.end());
      EXPECT_LE(*most - *least, 1) << num_experts << " experts, top_k " << top_k << ", " << num_tokens << " tokens";
    }
  }
}

TEST(GenerateRouting, BalancedTokensReachManyRanks) {
  for (const auto& [num_experts, top_k, num_ranks] : {std::tuple{256, 8, 8}, {64, 6, 8}, {512, 22, 16}, {128, 8, 32}}) {
    const ExpertPartition partition{num_experts, num_ranks};
    const RoutingTable table =
        generate("balanced", {.num_tokens = 300, .num_experts = num_experts, .top_k = top_k, .num_ranks = num_ranks});
    std::int64_t reached = 0;
    for (std::int64_t token = 0; token < table.num_tokens; ++token) {
      std::set<std::int32_t> ranks;
      for (std::int64_t k_idx = 0; k_idx < top_k; ++k_idx) {
        ranks.insert(partition.rank_of(table.expert_ids[static_cast<std::size_t>(token * top_k + k_idx)]));
      }
      reached += static_cast<std::int64_t>(ranks.size());
    }
    const double mean = static_cast<double>(reached) / static_cast<double>(table.num_tokens);
    EXPECT_GE(mean, 0.9 * std::min(top_k, num_ranks)) << num_experts << " experts on " << num_ranks << " ranks";
  }
}

TEST(GenerateRouting, UniformDrawsEverySetEquallyOften) {
  const RoutingTable table = generate("uniform", {.num_tokens = 40000, .num_experts = 5, .top_k = 2});
  std::map<std::pair<std::int32_t, std::int32_t>, int> counts;
  for (std::size_t entry = 0; entry < table.expert_ids.size(); entry += 2) {
    ++counts[{table.expert_ids[entry], table.expert_ids[entry + 1]}];
  }
  ASSERT_EQ(counts.size(), 20U);
  // 2000 expected; five standard deviations.
  for (const auto& [pair, count] : counts) EXPECT_NEAR(count, 2000, 220);
}

TEST(GenerateRouting, ZipfIsSkewedAlikeOnAllRanks) {
  const auto counts = expert_counts("zipf:1", {.num_tokens = 4000, .num_experts = 64, .top_k = 1, .num_ranks = 4});
  const auto hottest = std::max_element(counts.begin(), counts.end());
  // Share of the first place: 1 / (1 + 1/2 + ... + 1/64) = 0.2108.
  EXPECT_NEAR(static_cast<double>(*hottest) / 16000.0, 0.2108, 0.017);
  for (std::int32_t rank = 0; rank < 4; ++rank) {
    const RoutingTable table =
        generate("zipf:1", {.num_tokens = 4000, .num_experts = 64, .top_k = 1, .rank = rank, .num_ranks = 4});
    const auto hot_here = std::count(table.expert_ids.begin(), table.expert_ids.end(),
                                     static_cast<std::int32_t>(hottest - counts.begin()));
    EXPECT_NEAR(static_cast<double>(hot_here) / 4000.0, 0.2108, 0.033) << "rank " << rank;
  }
}

TEST(GenerateRouting, ForcedRandomIsBalancedInExpectationAndKeepsToGroups) {
  const RoutingTable table = generate(
      "forced-random",
      {.num_tokens = 4000, .num_experts = 64, .top_k = 8, .num_groups = 8, .groups_per_token = 3, .num_ranks = 1});
  std::vector<int> counts(64, 0);
  for (std::size_t token = 0; token < 4000; ++token) {
    std::set<std::int32_t> groups;
    for (std::size_t k_idx = 0; k_idx < 8; ++k_idx) {
      const std::int32_t id = table.expert_ids[token * 8 + k_idx];
      ++counts.at(static_cast<std::size_t>(id));
      groups.insert(id / 8);
    }
    ASSERT_LE(groups.size(), 3U);
  }
  for (const int count : counts) EXPECT_NEAR(count, 500, 110);
}

TEST(GenerateRouting, GroupsDoNotLimitOtherKinds) {
  RoutingRequest request = {.num_tokens = 20, .num_experts = 30, .top_k = 8};
  const RoutingTable base = generate("uniform", request);
  request.num_groups = 7;
  EXPECT_EQ(generate("uniform", request).expert_ids, base.expert_ids);
}

TEST(GenerateRouting, RejectsImpossibleRequests) {
  const RoutingRequest good = {.num_tokens = 4, .num_experts = 8, .top_k = 2};
  std::vector<RoutingRequest> bad(10, good);
  bad[0].top_k = 9;
  bad[1].top_k = 0;
  bad[2].num_experts = 0;
  bad[3].num_experts = -1;
  bad[4].num_tokens = -1;
  bad[5].num_tokens = std::int64_t{1} << 31;
  bad[6].rank = -1;
  bad[7].rank = 1;
  bad[8].num_ranks = 0;
  bad[9].top_k = -1;
  for (std::size_t idx = 0; idx < bad.size(); ++idx) {
    for (const char* spec : kSynthetic) {
      try {
        (void)generate(spec, bad[idx]);
        ADD_FAILURE() << "accepted request " << idx << " of " << spec;
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument) << error.what();
      }
    }
  }
  RoutingRequest groups = good;
  groups.num_groups = 3;
  EXPECT_THROW((void)generate("forced-random", groups), Error);
}

TEST(GenerateRouting, RejectsSpecsThatParseWouldNotMake) {
  const RoutingRequest request = {.num_tokens = 4, .num_experts = 8, .top_k = 2};
  for (const double parameter : {-1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    RoutingSpec spec;
    spec.kind = RoutingKind::kZipf;
    spec.parameter = parameter;
    EXPECT_THROW((void)generate_routing(spec, request), Error);
  }
  RoutingSpec spec;
  spec.kind = RoutingKind::kTrace;
  EXPECT_THROW((void)generate_routing(spec, request), Error);
}

}  // namespace
}  // namespace epistle
