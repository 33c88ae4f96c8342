// The replica hash: quotas are kept, and neither the position's parity nor the top-k column plays a part.
#include <array>
#include <cmath>

#include <gtest/gtest.h>

#include "balance/replica_table.hpp"
#include "unit/balance/loads_for_tests.hpp"

namespace epistle::balance {
namespace {

constexpr std::int64_t kNumTokens = 40000;

/// 0.1% quantiles of chi-square, by degrees of freedom, as tables have them. The draws are the same every time, so a
/// test that passes once passes always.
double chi_square_limit(std::size_t degrees) {
  constexpr std::array<double, 9> kLimits = {0.0, 10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32, 26.12};
  return kLimits.at(degrees);
}

double chi_square(const std::vector<double>& seen, const std::vector<double>& expected) {
  double sum = 0.0;
  for (std::size_t idx = 0; idx < seen.size(); ++idx) {
    sum += (seen[idx] - expected[idx]) * (seen[idx] - expected[idx]) / expected[idx];
  }
  return sum;
}

/// Expert 0 on four ranks with uneven quotas; expert 1 on two.
struct HashCase {
  Cluster cluster = Cluster::even(4, 8, 2);
  SlotTable table{.begin = {0, 2, 4, 6, 8}, .expert = {0, 1, 0, 2, 0, 1, 0, 3}};
  std::vector<double> quotas = {0.4, 0.5, 0.3, 1.0, 0.2, 0.5, 0.1, 1.0};
  ReplicaTable replicas{table, 4, quotas, cluster};
};

TEST(ReplicaHash, KeepsTheQuotas) {
  const HashCase drawn;
  for (std::uint64_t step = 0; step < 5; ++step) {
    std::vector<double> seen(4, 0.0);
    for (std::int64_t token = 0; token < kNumTokens; ++token) {
      ++seen[static_cast<std::size_t>(choose_replica(drawn.replicas.view(), {token, 0, step}))];
    }
    const double num_tokens = kNumTokens;
    EXPECT_LT(chi_square(seen, {0.4 * num_tokens, 0.3 * num_tokens, 0.2 * num_tokens, 0.1 * num_tokens}),
              chi_square_limit(3));
  }
}

TEST(ReplicaHash, NeitherParityNorColumnDecides) {
  const HashCase drawn;
  // Positions by their remainders, as the columns of a top-k list would go round: every class keeps the quotas.
  for (const std::int64_t modulus : {2, 4, 6, 8}) {
    for (std::int64_t remainder = 0; remainder < modulus; ++remainder) {
      double first = 0.0;
      double total = 0.0;
      for (std::int64_t token = remainder; token < kNumTokens; token += modulus) {
        const std::int32_t entry = choose_replica(drawn.replicas.view(), {token, 1, 3});
        first += entry == drawn.replicas.view().begin[1] ? 1.0 : 0.0;
        total += 1.0;
      }
      EXPECT_LT(chi_square({first, total - first}, {total / 2, total / 2}), chi_square_limit(1))
          << remainder << " of " << modulus;
    }
  }
}

TEST(ReplicaHash, NeighboursExpertsAndStepsAreUnrelated) {
  const HashCase drawn;
  const auto bit = [&](std::int64_t token, std::int32_t expert, std::uint64_t step) {
    return (hash_key({token, expert, step}) >> 63) != 0 ? 1.0 : -1.0;
  };
  double neighbours = 0.0;
  double experts = 0.0;
  double steps = 0.0;
  for (std::int64_t token = 0; token < kNumTokens; ++token) {
    neighbours += bit(token, 0, 0) * bit(token + 1, 0, 0);
    experts += bit(token, 0, 0) * bit(token, 1, 0);
    steps += bit(token, 0, 0) * bit(token, 0, 1);
  }
  // Sums of as many signs: four standard deviations.
  const double limit = 4.0 * std::sqrt(static_cast<double>(kNumTokens));
  EXPECT_LT(std::fabs(neighbours), limit);
  EXPECT_LT(std::fabs(experts), limit);
  EXPECT_LT(std::fabs(steps), limit);
}

TEST(ReplicaHash, EveryInputBitChangesHalfOfTheOutput) {
  for (int bit = 0; bit < 40; ++bit) {
    double changed = 0.0;
    constexpr int kNumKeys = 500;
    for (int key = 0; key < kNumKeys; ++key) {
      const std::uint64_t before = hash_key({key, 5, 9});
      const std::uint64_t after = hash_key({key ^ (std::int64_t{1} << bit), 5, 9});
      changed += std::popcount(before ^ after);
    }
    EXPECT_NEAR(changed / kNumKeys, 32.0, 1.0) << bit;
  }
}

TEST(ReplicaHash, GivesTheSameBitsEverywhere) {
  static_assert(hash_key({0, 0, 0}) != hash_key({1, 0, 0}));
  EXPECT_EQ(mix_bits(1), 0x5692161D100B05E5ULL);
  constexpr std::uint64_t kKnown = hash_key({.token_position = 123, .expert = 45, .step_seed = 6});
  EXPECT_EQ(hash_key({123, 45, 6}), kKnown);
}

TEST(ReplicaHash, ReplicasWithoutQuotaGetNothing) {
  const Cluster cluster = Cluster::even(3, 3);
  const SlotTable table{.begin = {0, 1, 2, 3}, .expert = {0, 0, 0}};
  for (std::size_t all = 0; all < 3; ++all) {
    std::vector<double> quotas(3, 0.0);
    quotas[all] = 1.0;
    const ReplicaTable replicas(table, 1, quotas, cluster);
    for (std::int64_t token = 0; token < 20000; ++token) {
      // 2^-32 of the tokens may be rounded to the last replica.
      ASSERT_EQ(choose_replica(replicas.view(), {token, 0, 0}), static_cast<std::int32_t>(all));
    }
  }
}

TEST(NearReplicas, KeepTheQuotasAndStayNear) {
  const HashCase drawn;
  std::vector<double> seen(4, 0.0);
  double near = 0.0;
  double plain_near = 0.0;
  for (std::int64_t token = 0; token < kNumTokens; ++token) {
    const auto src_rank = static_cast<std::int32_t>(token % 4);
    const std::int32_t domain = drawn.cluster.domain_of(src_rank);
    const std::int32_t entry = choose_near_replica(drawn.replicas.view(), {token, 0, 1}, src_rank, domain);
    ++seen[static_cast<std::size_t>(entry)];
    near += drawn.replicas.entry(entry).rank == src_rank ? 1.0 : 0.0;
    plain_near +=
        drawn.replicas.entry(choose_replica(drawn.replicas.view(), {token, 0, 1})).rank == src_rank ? 1.0 : 0.0;
  }
  const double num_tokens = kNumTokens;
  EXPECT_LT(chi_square(seen, {0.4 * num_tokens, 0.3 * num_tokens, 0.2 * num_tokens, 0.1 * num_tokens}),
            chi_square_limit(3));
  // Quotas .4 .3 .2 .1 against a quarter of the tokens each: .25 + .25 + .2 + .1 can stay.
  EXPECT_NEAR(near / num_tokens, 0.8, 0.01);
  EXPECT_NEAR(plain_near / num_tokens, 0.25, 0.01);
}

TEST(NearReplicas, GoBeyondTheirQuotaAsFarAsTheyMay) {
  const HashCase drawn;
  const ReplicaTable loose(drawn.table, 4, drawn.quotas, drawn.cluster, {.max_imbalance = 0.2});
  double on_third = 0.0;
  for (std::int64_t token = 0; token < kNumTokens; ++token) {
    const auto src_rank = static_cast<std::int32_t>(token % 4);
    const std::int32_t entry =
        choose_near_replica(loose.view(), {token, 0, 1}, src_rank, drawn.cluster.domain_of(src_rank));
    on_third += loose.entry(entry).rank == 2 ? 1.0 : 0.0;
  }
  EXPECT_GT(on_third / kNumTokens, 0.21);
  EXPECT_LT(on_third / kNumTokens, 0.2 * 1.2 + 0.01);
}

}  // namespace
}  // namespace epistle::balance
