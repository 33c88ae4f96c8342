// Which slot serves which token: the integers of the fast dispatchers against the text of the contract, and the
// quality of the choice.
#include "dispatch/call/placed_experts.hpp"

#include <array>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "dispatch/reference/slots.hpp"
#include "support/placements.hpp"

namespace epistle {
namespace {

using testing::random_placement;

ResolvedConfig placed_config(const Placement& placement, int num_ranks, std::int64_t max_tokens) {
  DispatcherConfig config;
  config.hidden = 16;
  config.num_experts = placement.num_experts();
  config.top_k = 1;
  config.max_tokens = max_tokens;
  config.placement = placement;
  return resolve_config(config, num_ranks);
}

TEST(PlacedExperts, ChooseAsTheContractSays) {
  constexpr std::int64_t kTokens = 40;
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    const int num_ranks = 1 + static_cast<int>(seed % 7);
    const std::int32_t num_experts = 3 + static_cast<std::int32_t>(seed % 5);
    const Placement placement = random_placement({num_experts, num_ranks, 1}, seed);
    const ResolvedConfig config = placed_config(placement, num_ranks, kTokens);
    for (int rank = 0; rank < num_ranks; ++rank) {
      const PlacedExperts placed(placement, config, num_ranks, rank);
      const SlotChooser chooser = placed.chooser(seed * 1000);
      for (std::int32_t expert = 0; expert < num_experts; ++expert) {
        for (std::int64_t token = 0; token < kTokens; ++token) {
          const SlotRef wanted = reference::slot_of(config, num_ranks, &placement, expert, {rank, token, seed * 1000});
          const std::int32_t slot = chooser.slot_of(expert, token);
          ASSERT_EQ(slot / config.slots_per_rank, wanted.rank) << "seed " << seed << ", token " << token;
          ASSERT_EQ(slot % config.slots_per_rank, wanted.local_slot) << "seed " << seed << ", token " << token;
          ASSERT_EQ(placed.expert_of_slot()[static_cast<std::size_t>(slot)], expert);
        }
      }
    }
  }
}

TEST(PlacedExperts, KnowTheSlotsOfEveryRank) {
  const Placement placement(3, {{0, 1, 2}, {}, {2}}, 4);
  const PlacedExperts placed(placement, placed_config(placement, 3, 8), 3, 1);
  EXPECT_EQ(std::vector<std::int32_t>(placed.slots_of_rank().begin(), placed.slots_of_rank().end()),
            (std::vector<std::int32_t>{3, 0, 1}));
  EXPECT_EQ(std::vector<std::int32_t>(placed.expert_of_slot().begin(), placed.expert_of_slot().end()),
            (std::vector<std::int32_t>{0, 1, 2, -1, -1, -1, 2, -1, -1}));
  EXPECT_EQ(placed.generation(), 4U);
}

/// The hash of the contract is part of what programs may rely on.
TEST(PlacedExperts, TheHashIsTheDocumentedOne) {
  EXPECT_EQ(hash_key({.token_position = 0, .expert = 0, .step_seed = 0}), 0xB49AB477BB8685E2ULL);
  EXPECT_EQ(hash_key({.token_position = 4097, .expert = 255, .step_seed = 1}), 0x8312D190FFA4AA93ULL);
}

// ---- Quality --------------------------------------------------------------------------------------------------------

/// Chi-square of counts against equal parts, as multiples of its standard deviation above its mean.
double deviation(const std::vector<double>& seen) {
  double total = 0.0;
  for (const double count : seen) total += count;
  const double expected = total / static_cast<double>(seen.size());
  double sum = 0.0;
  for (const double count : seen) sum += (count - expected) * (count - expected) / expected;
  const auto degrees = static_cast<double>(seen.size() - 1);
  return (sum - degrees) / std::sqrt(2.0 * degrees);
}

/// No draw is new, so a test that passes once passes always.
constexpr double kLimit = 4.0;

/// Every expert has a slot on each of four ranks. Tokens of one rank with 6 experts each, as a router gives them: the
/// column of an expert and the parity of the token's position go together in many batches.
TEST(PlacedExperts, ReplicasGoTogetherWithNeitherColumnNorPosition) {
  constexpr int kRanks = 4;
  constexpr int kTopK = 6;
  constexpr std::int64_t kTokens = 8192;
  std::vector<std::int32_t> all(16);
  for (std::size_t expert = 0; expert < all.size(); ++expert) all[expert] = static_cast<std::int32_t>(expert);
  const Placement placement(16, std::vector<std::vector<std::int32_t>>(kRanks, all));
  const ResolvedConfig config = placed_config(placement, kRanks, kTokens);
  const PlacedExperts placed(placement, config, kRanks, 2);
  for (std::uint64_t step = 0; step < 4; ++step) {
    const SlotChooser chooser = placed.chooser(step);
    std::vector<double> by_column(kTopK * kRanks, 0.0);
    std::vector<double> by_parity(2 * kRanks, 0.0);
    std::vector<double> by_pair(kRanks * kRanks, 0.0);
    std::vector<double> by_next(kRanks * kRanks, 0.0);
    std::vector<int> last(kTopK, 0);
    for (std::int64_t token = 0; token < kTokens; ++token) {
      std::array<int, kTopK> ranks{};
      for (std::size_t column = 0; column < kTopK; ++column) {
        const auto expert = static_cast<std::int32_t>((column * 2 + static_cast<std::size_t>(token) % 2) % all.size());
        const int rank = chooser.slot_of(expert, token) / config.slots_per_rank;
        ranks[column] = rank;
        ++by_column[column * kRanks + static_cast<std::size_t>(rank)];
        ++by_parity[static_cast<std::size_t>(token % 2) * kRanks + static_cast<std::size_t>(rank)];
        if (token > 0) ++by_next[static_cast<std::size_t>(last[column] * kRanks + rank)];
        last[column] = rank;
      }
      ++by_pair[static_cast<std::size_t>(ranks[0] * kRanks + ranks[1])];
    }
    EXPECT_LT(deviation(by_column), kLimit) << "replica and column, step " << step;
    EXPECT_LT(deviation(by_parity), kLimit) << "replica and parity of the position, step " << step;
    EXPECT_LT(deviation(by_pair), kLimit) << "two experts of a token, step " << step;
    EXPECT_LT(deviation(by_next), kLimit) << "tokens one behind the other, step " << step;
  }
}

TEST(PlacedExperts, StepsSendTokensAnotherWay) {
  const Placement placement(1, {{0}, {0}, {0}, {0}});
  const PlacedExperts placed(placement, placed_config(placement, 4, 4096), 4, 0);
  std::vector<double> pairs(16, 0.0);
  for (std::int64_t token = 0; token < 4096; ++token) {
    ++pairs[static_cast<std::size_t>(placed.chooser(1).slot_of(0, token) * 4 + placed.chooser(2).slot_of(0, token))];
  }
  EXPECT_LT(deviation(pairs), kLimit);
}

/// What a rank's tokens do under `choice`, summed up over all ranks, as shares of the replicas.
struct Shares {
  std::vector<double> of_rank;
  double on_own_rank = 0.0;
  double in_own_domain = 0.0;
};

Shares shares_of(const ReplicaChoice& choice) {
  constexpr int kRanks = 4;
  constexpr std::int64_t kTokens = 20000;
  const Placement placement(1, {{0}, {0}, {0}, {}}, 0, choice);
  const ResolvedConfig config = placed_config(placement, kRanks, kTokens);
  Shares shares{.of_rank = std::vector<double>(kRanks, 0.0)};
  for (int rank = 0; rank < kRanks; ++rank) {
    const PlacedExperts placed(placement, config, kRanks, rank);
    const SlotChooser chooser = placed.chooser(9);
    for (std::int64_t token = 0; token < kTokens; ++token) {
      const int target = chooser.slot_of(0, token) / config.slots_per_rank;
      const double share = 1.0 / static_cast<double>(kRanks * kTokens);
      shares.of_rank[static_cast<std::size_t>(target)] += share;
      if (target == rank) shares.on_own_rank += share;
      if (target / 2 == rank / 2) shares.in_own_domain += share;
    }
  }
  return shares;
}

TEST(PlacedExperts, NearReplicasComeFirstWithinTheQuotas) {
  ReplicaChoice choice{.quotas = {{0.5}, {0.3}, {0.2}, {}}};
  const Shares anywhere = shares_of(choice);
  choice.near_first = true;
  choice.domain_of_rank = {0, 0, 1, 1};
  const Shares near = shares_of(choice);
  for (const Shares& shares : {anywhere, near}) {
    EXPECT_NEAR(shares.of_rank[0], 0.5, 0.01);
    EXPECT_NEAR(shares.of_rank[1], 0.3, 0.01);
    EXPECT_NEAR(shares.of_rank[2], 0.2, 0.01);
  }
  EXPECT_GT(near.on_own_rank, 0.69);  // 1/4 + 1/4 + 1/5
  EXPECT_LT(anywhere.on_own_rank, 0.26);
  EXPECT_GT(near.in_own_domain, anywhere.in_own_domain + 0.15);
  choice.max_imbalance = 0.1;
  const Shares looser = shares_of(choice);
  EXPECT_GT(looser.on_own_rank, near.on_own_rank + 0.01);
  EXPECT_LT(looser.of_rank[2], 0.2 * 1.1 + 0.01);
}

// ---- What does not fit ----------------------------------------------------------------------------------------------

std::string refusal(const Placement& placement, std::int32_t slots_per_rank, int num_ranks) {
  DispatcherConfig config;
  config.hidden = 16;
  config.num_experts = 3;
  config.top_k = 1;
  config.max_tokens = 4;
  config.placement = placement;
  config.slots_per_rank = slots_per_rank;
  try {
    (void)resolve_config(config, num_ranks);
    return "taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    return std::string(error.message());
  }
}

TEST(PlacedExperts, ConfigurationsThatDoNotFitAreRefused) {
  const Placement two_ranks(3, {{0, 1}, {2, 0}});
  EXPECT_EQ(refusal(two_ranks, 0, 2), "taken");
  EXPECT_EQ(refusal(two_ranks, 5, 2), "taken");
  EXPECT_EQ(refusal({}, 2, 2), "taken");
  EXPECT_NE(refusal(two_ranks, 0, 3).find("2 ranks"), std::string::npos);
  EXPECT_NE(refusal(two_ranks, 1, 2).find("room for 1"), std::string::npos);
  EXPECT_NE(refusal({}, 1, 2).find("room for 1"), std::string::npos);
  EXPECT_NE(refusal(Placement(4, {{0, 1}, {2, 3}}), 0, 2).find("4 experts"), std::string::npos);
  EXPECT_NE(refusal({}, -1, 2).find("slots_per_rank is -1"), std::string::npos);
}

TEST(PlacedExperts, FingerprintsTellPlacementsApart) {
  const std::vector<std::vector<std::int32_t>> slots = {{0, 1}, {1, 2}};
  std::map<std::uint64_t, int> seen;
  const auto add = [&](const Placement& placement) { ++seen[fingerprint(placement)]; };
  add({});
  add({3, slots});
  add({3, {{1, 0}, {1, 2}}});
  add({3, {{0, 1, 1 + 1}, {1}}});
  add({4, {{0, 1}, {1, 2, 3}}});
  add({3, slots, 0, {.quotas = {{1, 1}, {1, 1}}}});
  add({3, slots, 0, {.quotas = {{1, 2}, {1, 1}}}});
  add({3, slots, 0, {.near_first = true}});
  add({3, slots, 0, {.near_first = true, .domain_of_rank = {0, 1}}});
  add({3, slots, 0, {.near_first = true, .domain_of_rank = {1, 1}}});
  add({3, slots, 0, {.near_first = true, .max_imbalance = 0.5}});
  EXPECT_EQ(seen.size(), 11U);
  EXPECT_EQ(fingerprint({3, slots, 5}), fingerprint({3, slots, 6}));
}

}  // namespace
}  // namespace epistle
