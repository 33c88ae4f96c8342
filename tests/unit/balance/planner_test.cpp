// Plans: sound, within their limits, never worse than doing nothing, and near the best of all placements where these
// can be counted.
#include "balance/planner.hpp"

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include "epistle/error.hpp"

#include "balance/eplb.hpp"
#include "support/trace_files.hpp"
#include "unit/balance/loads_for_tests.hpp"

namespace epistle::balance {
namespace {

using test::expect_sound;
using test::lognormal_loads;
using test::numbers;
using test::random_placement;
using test::zipf_loads;

PlanRequest request_for(std::vector<double> loads, const Cluster& cluster) {
  PlanRequest request;
  request.windows = {std::move(loads)};
  request.cluster = cluster;
  request.expert_bytes = 10;
  return request;
}

void expect_quotas(const Plan& plan, std::int32_t num_experts) {
  std::vector<double> sums(static_cast<std::size_t>(num_experts), 0.0);
  for (std::size_t slot = 0; slot < plan.quotas.size(); ++slot) {
    EXPECT_GE(plan.quotas[slot], 0.0);
    if (plan.placement.expert[slot] == kEmptySlot) {
      EXPECT_EQ(plan.quotas[slot], 0.0);
    } else {
      sums[static_cast<std::size_t>(plan.placement.expert[slot])] += plan.quotas[slot];
    }
  }
  for (const double sum : sums) EXPECT_NEAR(sum, 1.0, 1e-9);
}

/// Balancedness that the quotas of a plan really give.
double balancedness_of(const Plan& plan, const std::vector<double>& loads, const Cluster& cluster) {
  double largest = 0.0;
  for (std::size_t rank = 0; rank + 1 < plan.placement.begin.size(); ++rank) {
    double load = 0.0;
    for (auto slot = static_cast<std::size_t>(plan.placement.begin[rank]);
         slot < static_cast<std::size_t>(plan.placement.begin[rank + 1]); ++slot) {
      if (plan.placement.expert[slot] == kEmptySlot) continue;
      load += plan.quotas[slot] * loads[static_cast<std::size_t>(plan.placement.expert[slot])];
    }
    largest = std::max(largest, load);
  }
  return std::accumulate(loads.begin(), loads.end(), 0.0) / cluster.num_holders() / largest;
}

TEST(Eplb, GivesItsDocumentedExample) {
  const std::vector<double> first = {90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86};
  const std::vector<double> second = {20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27};
  const EplbShape shape{.num_slots = 16, .num_groups = 4, .num_nodes = 2, .num_ranks = 8};
  EXPECT_EQ(rebalance_experts(first, shape),
            (std::vector<std::int32_t>{5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1}));
  EXPECT_EQ(rebalance_experts(second, shape),
            (std::vector<std::int32_t>{7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1}));
}

TEST(Eplb, SaysWhatItCannotServe) {
  test::expect_error(ErrorCode::kInvalidArgument, {"equally many slots on every rank"},
                     [] { (void)rebalance_experts(std::vector<double>(8, 1.0), {.num_slots = 9, .num_ranks = 4}); });
}

TEST(Planner, FromNothingIsBalanced) {
  struct Shape {
    std::size_t num_experts;
    std::int32_t num_slots;
    std::int32_t num_ranks;
    double least;
  };
  for (const Shape& shape : {Shape{256, 288, 32, 0.999}, Shape{256, 320, 64, 0.999}, Shape{128, 160, 16, 0.999},
                             Shape{384, 416, 32, 0.999}, Shape{64, 80, 8, 0.999}, Shape{61, 83, 7, 0.999}}) {
    const Cluster cluster = Cluster::even(shape.num_ranks, shape.num_slots);
    for (std::uint64_t seed = 0; seed < 3; ++seed) {
      for (const auto& loads : {lognormal_loads(seed, shape.num_experts, 0.6), zipf_loads(seed, shape.num_experts, 1.0),
                                zipf_loads(seed, shape.num_experts, 0.5)}) {
        const Plan plan = plan_placement(request_for(loads, cluster));
        expect_sound(plan.placement, static_cast<std::int32_t>(shape.num_experts), cluster);
        expect_quotas(plan, static_cast<std::int32_t>(shape.num_experts));
        EXPECT_GE(plan.after, shape.least) << shape.num_slots << " slots, seed " << seed;
        EXPECT_LE(plan.after, plan.bound + 1e-9);
        EXPECT_NEAR(balancedness_of(plan, loads, cluster), plan.after, 1e-6);
      }
    }
  }
}

TEST(Planner, FewSlotsToSpare) {
  const Cluster cluster = Cluster::even(72, 288);
  const Plan even = plan_placement(request_for(lognormal_loads(3, 256, 0.6), cluster));
  expect_sound(even.placement, 256, cluster);
  EXPECT_GE(even.after, 0.998);
  const Plan skewed = plan_placement(request_for(zipf_loads(3, 256, 1.0), cluster));
  expect_sound(skewed.placement, 256, cluster);
  EXPECT_GE(skewed.after, 0.885);
  EXPECT_LE(skewed.after, skewed.bound);
  EXPECT_LT(skewed.bound, 0.99);
}

TEST(Planner, KeepsGroupsInDomainsAsFarAsBalanceAllows) {
  const Cluster cluster = Cluster::even(32, 288, 4);
  PlanRequest request = request_for(zipf_loads(1, 256, 1.0), cluster);
  request.num_groups = 8;
  const Plan plan = plan_placement(request);
  expect_sound(plan.placement, 256, cluster);
  expect_quotas(plan, 256);
  EXPECT_GE(plan.after, 0.95);
  EXPECT_LT(plan.foreign_share, 0.25);
  request.windows = {std::vector<double>(256, 1.0)};
  EXPECT_EQ(plan_placement(request).foreign_share, 0.0);
}

TEST(Planner, AnyDivisibilityAndRanksOfDifferentSize) {
  for (std::uint64_t seed = 0; seed < 150; ++seed) {
    SCOPED_TRACE(seed);
    PhiloxStream stream = numbers(seed);
    Cluster cluster;
    const auto num_experts = static_cast<std::int32_t>(1 + stream.below(40));
    const std::uint64_t num_ranks = 1 + stream.below(9);
    for (std::uint64_t rank = 0; rank < num_ranks; ++rank) {
      cluster.slots_of_rank.push_back(static_cast<std::int32_t>(stream.below(12)));
    }
    cluster.slots_of_rank[0] += std::max(0, num_experts - cluster.num_slots());
    if (seed % 3 == 0) {
      for (std::uint64_t rank = 0; rank < num_ranks; ++rank) {
        cluster.domain_of_rank.push_back(static_cast<std::int32_t>(rank * 2 / num_ranks));
      }
    }
    std::vector<double> loads = lognormal_loads(seed, static_cast<std::size_t>(num_experts), 1.5);
    if (seed % 5 == 0) std::fill(loads.begin() + num_experts / 2, loads.end(), 0.0);
    PlanRequest request = request_for(loads, cluster);
    request.num_groups = seed % 3 == 0 ? 1 : 0;
    if (seed % 2 == 0) request.current = random_placement(seed, num_experts, cluster);
    if (seed % 4 == 0) request.method = Method::kIncremental;
    const Plan plan = plan_placement(request);
    ASSERT_NO_THROW(plan.placement.check(num_experts, cluster));
    if (!request.current) expect_sound(plan.placement, num_experts, cluster);
    expect_quotas(plan, num_experts);
    if (request.current) {
      EXPECT_GE(plan.after, plan.before - 1e-12);
    }
    EXPECT_LE(plan.after, plan.bound + 1e-9);
  }
}

/// The best of all placements, by trying them all.
double best_of_all(const std::vector<double>& loads, const Cluster& cluster) {
  SlotTable table = SlotTable::empty(cluster.slots_of_rank);
  const auto num_experts = static_cast<std::int32_t>(loads.size());
  double least = std::numeric_limits<double>::max();
  const auto try_from = [&](const auto& self, std::size_t slot) -> void {
    if (slot == table.expert.size()) {
      const auto counts = table.replica_counts(num_experts);
      if (std::find(counts.begin(), counts.end(), 0) != counts.end()) return;
      least = std::min(least, test::least_largest_load(table, loads));
      return;
    }
    for (std::int32_t expert = 0; expert < num_experts; ++expert) {
      table.expert[slot] = expert;
      self(self, slot + 1);
    }
  };
  try_from(try_from, 0);
  return std::accumulate(loads.begin(), loads.end(), 0.0) / cluster.num_holders() / least;
}

TEST(Planner, IsNearTheBestOfAllPlacements) {
  int num_best = 0;
  constexpr int kNumCases = 40;
  for (std::uint64_t seed = 0; seed < kNumCases; ++seed) {
    SCOPED_TRACE(seed);
    const Cluster cluster = Cluster::even(3, seed % 2 == 0 ? 6 : 7);
    const std::vector<double> loads = lognormal_loads(seed, 4 + seed % 3 / 2, 1.0);
    const double best = best_of_all(loads, cluster);
    const Plan plan = plan_placement(request_for(loads, cluster));
    EXPECT_LE(plan.after, best + 1e-6);
    EXPECT_GE(plan.bound, best - 1e-6);
    EXPECT_GE(plan.after, 0.9 * best);
    num_best += plan.after >= 0.998 * best ? 1 : 0;
  }
  EXPECT_GE(num_best, kNumCases * 9 / 10);
}

class Drift : public ::testing::Test {
 protected:
  /// A plan for some loads, and the request when they have drifted.
  static PlanRequest drifted(std::uint64_t seed, double sigma) {
    std::vector<double> loads = lognormal_loads(seed, 256, 0.6);
    PlanRequest request = request_for(loads, Cluster::even(32, 288));
    const SlotTable current = plan_placement(request).placement;
    PhiloxStream stream = numbers(seed + 99);
    for (double& load : loads) load *= std::exp(sigma * test::normal(stream));
    request.windows = {loads};
    request.current = current;
    request.method = Method::kIncremental;
    return request;
  }
};

TEST_F(Drift, TakesFewCopies) {
  for (const auto& [sigma, part] : {std::pair{0.02, 0.001}, std::pair{0.1, 0.05}, std::pair{0.3, 0.09}}) {
    double copies = 0.0;
    constexpr int kNumLayers = 8;
    for (std::uint64_t seed = 0; seed < kNumLayers; ++seed) {
      const Plan plan = plan_placement(drifted(seed, sigma));
      EXPECT_GE(plan.after, 0.98 - 1e-6) << sigma;
      copies += static_cast<double>(plan.copy_summary.num_copies);
      EXPECT_EQ(plan.copy_summary.bytes, plan.copy_summary.num_copies * 10);
    }
    EXPECT_LE(copies / kNumLayers / 288, part) << sigma;
  }
}

TEST_F(Drift, StaysWithinItsLimits) {
  PlanRequest request = drifted(5, 0.6);
  const Plan free = plan_placement(request);
  ASSERT_GT(free.copy_summary.num_copies, 4);
  request.budget_bytes = 45;
  const Plan limited = plan_placement(request);
  EXPECT_LE(limited.copy_summary.num_copies, 4);
  EXPECT_GT(limited.after, limited.before);
  EXPECT_LT(limited.after, free.after);
  request.budget_bytes = kUnlimited;
  request.max_bytes_into_rank = 10;
  const Plan spread = plan_placement(request);
  std::vector<int> into(32, 0);
  for (const CopyStep& step : spread.copies) {
    if (step.link != LinkClass::kLocal) ++into[static_cast<std::size_t>(step.destination.rank)];
  }
  for (const int copies : into) EXPECT_LE(copies, 1);
  request.max_bytes_into_rank = kUnlimited;
  request.cluster = Cluster::even(32, 288, 4);
  request.max_bytes_across_domains = 0;
  EXPECT_EQ(plan_placement(request).copy_summary.bytes_across_domains, 0);
  request.budget_bytes = 0;
  const Plan none = plan_placement(request);
  EXPECT_FALSE(none.changed);
  EXPECT_TRUE(none.copies.empty());
  EXPECT_NE(none.reason, "");
}

TEST_F(Drift, DoesNothingWhereItIsNotWorthIt) {
  PlanRequest request = drifted(5, 0.02);
  const Plan steady = plan_placement(request);
  EXPECT_FALSE(steady.changed);
  EXPECT_NE(steady.reason.find("quotas alone"), std::string::npos) << steady.reason;
  request = drifted(5, 0.6);
  request.min_gain = 0.9;
  const Plan costly = plan_placement(request);
  EXPECT_FALSE(costly.changed);
  EXPECT_EQ(costly.placement, *request.current);
  EXPECT_NE(costly.reason.find("below 0.9000"), std::string::npos) << costly.reason;
}

TEST(Planner, PlansForAMixtureOfWindows) {
  const Cluster cluster = Cluster::even(8, 80);
  PlanRequest request = request_for(zipf_loads(1, 64, 0.8), cluster);
  request.windows.push_back(zipf_loads(2, 64, 0.8));
  request.windows.push_back(zipf_loads(3, 64, 0.8));
  const auto worst = [&](const Plan& plan) {
    double least = 1.0;
    for (const auto& window : request.windows) least = std::min(least, balancedness_of(plan, window, cluster));
    return least;
  };
  const Plan plain = plan_placement(request);
  request.num_candidates = 64;
  const Plan robust = plan_placement(request);
  expect_sound(robust.placement, 64, cluster);
  PlanRequest one = request_for(request.windows.front(), cluster);
  EXPECT_GT(worst(robust), worst(plan_placement(one)));
  EXPECT_GE(worst(robust), worst(plain) - 0.1);
  EXPECT_EQ(plan_placement(request).placement, robust.placement);  // the same every time
}

TEST(Planner, BalancesActivatedExperts) {
  // Expert 0 has most tokens, but all experts are needed in every batch.
  PlanRequest request = request_for({1000, 1, 1, 1, 1, 1, 1, 1}, Cluster::even(4, 8));
  request.windows.push_back(request.windows.front());
  request.objective = Objective::kActivatedExperts;
  const Plan plan = plan_placement(request);
  for (std::int32_t rank = 0; rank < 4; ++rank) EXPECT_EQ(plan.placement.experts_of(rank).size(), 2U);
  EXPECT_NEAR(plan.after, 1.0, 1e-9);
}

TEST(Planner, RefusesWhatMakesNoSense) {
  const Cluster cluster = Cluster::even(2, 4);
  const auto refuse = [](const PlanRequest& request, const std::string& part) {
    test::expect_error(ErrorCode::kInvalidArgument, {part}, [&] { (void)plan_placement(request); });
  };
  refuse(request_for({}, cluster), "at least one window");
  refuse(request_for({1, 2, -1}, cluster), "a load is -1");
  refuse(request_for({1, 2, 3, 4, 5}, cluster), "4 slots for 5 experts");
  PlanRequest request = request_for({1, 2, 3}, cluster);
  request.method = Method::kIncremental;
  refuse(request, "needs the current placement");
  request.current = SlotTable{.begin = {0, 2, 4}, .expert = {0, 1, 0, 1}};
  refuse(request, "no slot for expert 2");
  request = request_for({1, 2, 3}, cluster);
  request.num_groups = 2;
  refuse(request, "groups of equally many");
}

}  // namespace
}  // namespace epistle::balance
