// Shares of a batch: nothing is lost, and no rank gets more than the exact algorithm of the balancer gives its fullest.
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

TEST(BatchShares, FullestRankGetsAsLittleAsTheExactAlgorithmGivesIt) {
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
      EXPECT_EQ(*std::max_element(loads.begin(), loads.end()),
                *std::max_element(exact.rank_loads().begin(), exact.rank_loads().end()));
    }
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
