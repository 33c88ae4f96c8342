// Shares of a batch: nothing is lost, and no rank gets more than the exact algorithm of the balancer gives its fullest,
// and its slack.
#include "layout/batch_shares.hpp"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include <gtest/gtest.h>

#include "balance/batch_quotas.hpp"
#include "support/random_replicas.hpp"

namespace epistle::test {
namespace {

/// The same slots as the balancer writes them.
balance::SlotTable table_of(const Replicas& replicas) {
  balance::SlotTable table;
  std::vector<std::int32_t> experts_of_column(static_cast<std::size_t>(replicas.num_columns()), -1);
  for (std::int32_t expert = 0; expert < replicas.num_experts(); ++expert) {
    for (const ReplicaEntry& entry : replicas.of(expert))
      experts_of_column[static_cast<std::size_t>(entry.slot)] = expert;
  }
  for (std::int32_t rank = 0; rank < replicas.num_ranks; ++rank) {
    table.begin.push_back(table.num_slots());
    for (std::int32_t slot = 0; slot < replicas.slots_per_rank; ++slot) {
      const std::int32_t expert = experts_of_column[static_cast<std::size_t>(rank * replicas.slots_per_rank + slot)];
      if (expert >= 0) table.expert.push_back(expert);
    }
  }
  table.begin.push_back(table.num_slots());
  return table;
}

TEST(BatchShares, FullestRankGetsWhatTheExactAlgorithmGivesItAndOneIn256AtMost) {
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    SCOPED_TRACE(seed);
    const Replicas replicas = random_replicas(seed);
    BatchShares shares(replicas.begin, replicas.entries, replicas.num_ranks);
    balance::BatchQuotas exact(table_of(replicas), replicas.num_experts());
    for (int batch = 0; batch < 3; ++batch) {
      const std::vector<std::int64_t> tokens = random_tokens(seed, batch, replicas.num_experts());
      shares.solve(tokens);
      exact.solve(tokens);
      for (std::int32_t expert = 0; expert < replicas.num_experts(); ++expert) {
        const auto own = shares.units().subspan(replicas.first(expert), replicas.of(expert).size());
        EXPECT_EQ(std::accumulate(own.begin(), own.end(), 0), tokens[static_cast<std::size_t>(expert)]);
        EXPECT_GE(*std::min_element(own.begin(), own.end()), 0);
      }
      std::vector<std::int32_t> loads(static_cast<std::size_t>(replicas.num_ranks), 0);
      for (std::size_t entry = 0; entry < replicas.entries.size(); ++entry) {
        loads[static_cast<std::size_t>(replicas.entries[entry].rank)] += shares.units()[entry];
      }
      EXPECT_TRUE(std::equal(loads.begin(), loads.end(), shares.rank_units().begin()));
      const std::int64_t least = *std::max_element(exact.rank_loads().begin(), exact.rank_loads().end());
      EXPECT_GE(*std::max_element(loads.begin(), loads.end()), least);
      EXPECT_LE(*std::max_element(loads.begin(), loads.end()), least + least / 256);
    }
  }
}

TEST(BatchShares, FewTokensAreSharedExactly) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    const Replicas replicas = random_replicas(seed);
    std::vector<std::int64_t> tokens = random_tokens(seed, 0, replicas.num_experts());
    const std::int64_t all = std::accumulate(tokens.begin(), tokens.end(), std::int64_t{0});
    for (std::int64_t& count : tokens) count = count * 255 / std::max<std::int64_t>(all, 255);
    BatchShares shares(replicas.begin, replicas.entries, replicas.num_ranks);
    balance::BatchQuotas exact(table_of(replicas), replicas.num_experts());
    shares.solve(tokens);
    exact.solve(tokens);
    EXPECT_EQ(*std::max_element(shares.rank_units().begin(), shares.rank_units().end()),
              *std::max_element(exact.rank_loads().begin(), exact.rank_loads().end()));
  }
}

TEST(BatchShares, RoundsAloneEvenOutRanksThatShareWithTheirNeighbours) {
  // Two rings: every rank shares one expert with the next and one with the next but one, and phases would have to find
  // the ways round them.
  constexpr std::int32_t kRanks = 16;
  std::vector<std::vector<std::int32_t>> slots(kRanks);
  for (std::int32_t rank = 0; rank < kRanks; ++rank) {
    slots[static_cast<std::size_t>(rank)] = {rank, kRanks + rank, kRanks + (rank + 1) % kRanks, 2 * kRanks + rank,
                                             2 * kRanks + (rank + 2) % kRanks};
  }
  const Replicas replicas = replicas_of({3 * kRanks, slots, 1}, 5);
  std::vector<std::int64_t> tokens(3 * kRanks, 10'000);
  for (std::size_t rank = 0; rank < kRanks; ++rank) tokens[rank] = rank % 2 == 0 ? 11'000 : 9'000;
  BatchShares shares(replicas.begin, replicas.entries, replicas.num_ranks);
  shares.solve(tokens);
  EXPECT_GT(shares.num_rounds(), 0);
  EXPECT_EQ(shares.num_phases(), 0);
  EXPECT_LE(*std::max_element(shares.rank_units().begin(), shares.rank_units().end()), 30'000 + 30'000 / 256);
}

TEST(BatchShares, FewSlotsToSpareAreSharedExactlyAndWithoutRounds) {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE(seed);
    const Replicas replicas = random_replicas(seed);
    const std::int64_t num_spare = std::ssize(replicas.entries) - replicas.num_experts();
    if (num_spare >= 2 * replicas.num_ranks) continue;
    const std::vector<std::int64_t> tokens = random_tokens(seed, 1, replicas.num_experts());
    BatchShares shares(replicas.begin, replicas.entries, replicas.num_ranks);
    balance::BatchQuotas exact(table_of(replicas), replicas.num_experts());
    shares.solve(tokens);
    exact.solve(tokens);
    EXPECT_EQ(shares.num_rounds(), 0);
    EXPECT_EQ(*std::max_element(shares.rank_units().begin(), shares.rank_units().end()),
              *std::max_element(exact.rank_loads().begin(), exact.rank_loads().end()));
  }
}

TEST(BatchShares, PartsAreThoseOfTheShares) {
  const Replicas replicas = two_ranks_with_one_shared_expert();
  std::vector<ReplicaEntry> entries = replicas.entries;
  BatchShares shares(replicas.begin, replicas.entries, replicas.num_ranks);
  // Rank 0 has 10 tokens of its own, rank 1 has 30, so that of the 40 that they share 30 go to rank 0.
  shares.solve(std::vector<std::int64_t>{10, 40, 30});
  shares.set_parts(entries);
  EXPECT_EQ(shares.rank_units()[0], 40);
  EXPECT_EQ(shares.rank_units()[1], 40);
  EXPECT_EQ(entries[1].part_end, 0xc0000000U);
  EXPECT_EQ(entries[2].part_end, 0xffffffffU);
}

TEST(BatchShares, ReplicasOfAnExpertWithoutTokensAreAlike) {
  const Replicas replicas = two_ranks_with_one_shared_expert();
  std::vector<ReplicaEntry> entries = replicas.entries;
  BatchShares shares(replicas.begin, replicas.entries, replicas.num_ranks);
  shares.solve(std::vector<std::int64_t>{5, 0, -7});
  shares.set_parts(entries);
  EXPECT_EQ(entries[1].part_end, 0x80000000U);
  EXPECT_EQ(shares.rank_units()[1], 0) << "numbers below 0 count as 0";
}

TEST(BatchShares, MoreTokensThanFitAreSharedInUnits) {
  const Replicas replicas = two_ranks_with_one_shared_expert();
  BatchShares shares(replicas.begin, replicas.entries, replicas.num_ranks);
  constexpr std::int64_t kMany = std::int64_t{1} << 40;
  shares.solve(std::vector<std::int64_t>{kMany, 2 * kMany, kMany});
  EXPECT_EQ(shares.in_tokens(shares.rank_units()[0]), 2 * kMany);
  EXPECT_EQ(shares.in_tokens(shares.rank_units()[1]), 2 * kMany);
}

}  // namespace
}  // namespace epistle::test
