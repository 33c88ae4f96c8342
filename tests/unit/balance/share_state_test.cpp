// Shares of a placement against all cuts, one by one.
#include "balance/share_state.hpp"

#include <bit>
#include <cmath>

#include <gtest/gtest.h>

#include "balance/batch_quotas.hpp"
#include "unit/balance/loads_for_tests.hpp"

namespace epistle::balance {
namespace {

using test::numbers;
using test::random_placement;

std::vector<std::int64_t> random_tokens(std::uint64_t seed, std::int32_t num_experts) {
  PhiloxStream stream = numbers(seed + 1000);
  std::vector<std::int64_t> tokens(static_cast<std::size_t>(num_experts));
  for (std::int64_t& load : tokens) load = static_cast<std::int64_t>(stream.below(stream.below(200) + 1));
  return tokens;
}

void expect_whole(const ShareState& state, const std::vector<std::int64_t>& tokens) {
  for (std::int32_t expert = 0; expert < state.num_experts(); ++expert) {
    std::int64_t sum = 0;
    for (std::int32_t slot = state.first_slot(expert); slot >= 0; slot = state.next_slot(slot)) {
      EXPECT_GE(state.share(slot), 0);
      sum += state.share(slot);
    }
    EXPECT_EQ(sum, tokens[static_cast<std::size_t>(expert)]);
  }
  for (std::int32_t rank = 0; rank < state.num_ranks(); ++rank) {
    std::int64_t sum = 0;
    for (std::int32_t slot = state.slot_begin(rank); slot < state.slot_end(rank); ++slot) sum += state.share(slot);
    EXPECT_EQ(sum, state.rank_load(rank));
  }
}

class ShareCase {
 public:
  explicit ShareCase(std::uint64_t seed) {
    PhiloxStream stream = numbers(seed);
    const auto num_ranks = static_cast<std::int32_t>(1 + stream.below(7));
    num_experts = static_cast<std::int32_t>(1 + stream.below(12));
    for (std::int32_t rank = 0; rank < num_ranks; ++rank) {
      cluster.slots_of_rank.push_back(static_cast<std::int32_t>(stream.below(5)));
    }
    cluster.slots_of_rank[0] += std::max(0, num_experts - cluster.num_slots());
    table = random_placement(seed, num_experts, cluster);
    tokens = random_tokens(seed, num_experts);
  }

  [[nodiscard]] double least() const {
    return test::least_largest_load(table, std::vector<double>(tokens.begin(), tokens.end()));
  }

  Cluster cluster;
  std::int32_t num_experts = 0;
  SlotTable table;
  std::vector<std::int64_t> tokens;
};

TEST(ShareState, ReachesTheSmallestCutInWholeTokens) {
  for (std::uint64_t seed = 0; seed < 2000; ++seed) {
    SCOPED_TRACE(seed);
    const ShareCase drawn(seed);
    ShareState state(drawn.table, drawn.num_experts);
    state.spread(drawn.tokens);
    state.balance(0);
    expect_whole(state, drawn.tokens);
    EXPECT_EQ(state.max_load(), static_cast<std::int64_t>(std::ceil(drawn.least() - 1e-9)));
    const std::int64_t largest = state.max_load();
    state.level();
    expect_whole(state, drawn.tokens);
    EXPECT_EQ(state.max_load(), largest);
  }
}

TEST(ShareState, StopsAtTheGoal) {
  const Cluster cluster = Cluster::even(2, 4);
  const SlotTable table{.begin = {0, 2, 4}, .expert = {0, 1, 0, 2}};
  ShareState state(table, 3);
  state.take_shares(std::vector<std::int64_t>{100, 10, 10}, std::vector<std::int64_t>{100, 10, 0, 10});
  EXPECT_EQ(state.balance(80), 80);
  EXPECT_EQ(state.max_load(), 80);
  state.balance(0);
  EXPECT_EQ(state.max_load(), 60);
}

TEST(ShareState, ChangesOfSlotsKeepLoads) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    const ShareCase drawn(seed);
    ShareState state(drawn.table, drawn.num_experts);
    state.spread(drawn.tokens);
    PhiloxStream stream = numbers(seed + 7);
    for (int change = 0; change < 20; ++change) {
      const auto slot = static_cast<std::int32_t>(stream.below(static_cast<std::uint64_t>(drawn.table.num_slots())));
      const auto expert = static_cast<std::int32_t>(stream.below(static_cast<std::uint64_t>(drawn.num_experts)));
      const std::int32_t old = state.expert_at(slot);
      if (state.is_on(expert, state.rank_at(slot)) || (old != kEmptySlot && state.num_replicas(old) < 2)) continue;
      state.set_slot(slot, expert);
      expect_whole(state, drawn.tokens);
    }
    const double least =
        test::least_largest_load(state.table(), std::vector<double>(drawn.tokens.begin(), drawn.tokens.end()));
    state.balance(0);
    EXPECT_EQ(state.max_load(), static_cast<std::int64_t>(std::ceil(least - 1e-9)));
  }
}

TEST(BatchQuotas, EveryActiveExpertIsServedOnce) {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    const ShareCase drawn(seed);
    BatchQuotas quotas(drawn.table, drawn.num_experts);
    quotas.solve_activated(drawn.tokens);
    std::vector<std::int64_t> served(drawn.tokens.size(), 0);
    for (std::size_t slot = 0; slot < drawn.table.expert.size(); ++slot) {
      const std::int64_t quota = quotas.quotas()[slot];
      EXPECT_TRUE(quota == 0 || quota == 1);
      if (drawn.table.expert[slot] != kEmptySlot) served[static_cast<std::size_t>(drawn.table.expert[slot])] += quota;
    }
    for (std::size_t expert = 0; expert < served.size(); ++expert) {
      EXPECT_EQ(served[expert], drawn.tokens[expert] > 0 ? 1 : 0);
    }
  }
}

}  // namespace
}  // namespace epistle::balance
