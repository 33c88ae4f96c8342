// Placements for loads that may come: what is drawn, and what the search makes of it.
#include "balance/window_search.hpp"

#include <algorithm>
#include <numeric>
#include <vector>

#include <gtest/gtest.h>

#include "balance/component_bound.hpp"
#include "balance/fresh_plan.hpp"
#include "balance/load_units.hpp"
#include "balance/planner.hpp"
#include "unit/balance/loads_for_tests.hpp"

namespace epistle::balance {
namespace {

using test::expect_sound;
using test::lognormal_loads;
using test::uniform;
using test::zipf_loads;

using Windows = std::vector<std::vector<double>>;

/// Experts 0 and 1 are hot in one half of the windows, 2 and 3 in the other; the rest are always alike.
Windows taking_turns(std::size_t num_windows) {
  Windows windows;
  for (std::size_t window = 0; window < num_windows; ++window) {
    std::vector<double> loads(8, 1.0);
    loads[window % 2 == 0 ? 0 : 2] = loads[window % 2 == 0 ? 1 : 3] = 9.0;
    windows.push_back(loads);
  }
  return windows;
}

Windows in_parts(Windows windows) {
  for (std::vector<double>& window : windows) {
    const double sum = std::accumulate(window.begin(), window.end(), 0.0);
    for (double& load : window) load /= sum;
  }
  return windows;
}

/// Mean over the windows of mean over largest rank load.
double mean_balancedness(const SlotTable& table, const std::vector<double>& quotas, const Windows& windows) {
  double sum = 0.0;
  for (const std::vector<double>& window : windows) {
    std::vector<double> load(static_cast<std::size_t>(table.num_ranks()), 0.0);
    const std::vector<std::int32_t> rank_of = table.rank_of_slot();
    for (std::size_t slot = 0; slot < quotas.size(); ++slot) {
      if (table.expert[slot] == kEmptySlot) continue;
      load[static_cast<std::size_t>(rank_of[slot])] +=
          quotas[slot] * window[static_cast<std::size_t>(table.expert[slot])];
    }
    sum += std::accumulate(load.begin(), load.end(), 0.0) / static_cast<double>(load.size()) /
           *std::max_element(load.begin(), load.end());
  }
  return sum / static_cast<double>(windows.size());
}

TEST(WindowSearch, DrawsLoadsThatVaryTogetherAsTheyDidInTheWindows) {
  const Windows windows = in_parts(taking_turns(32));
  const std::vector<std::int64_t> loads = mix_windows(windows, Objective::kTokens);
  const auto scenarios = draw_scenarios(loads, windows, {.num_scenarios = 400});
  ASSERT_EQ(scenarios.size(), 400U);
  double together = 0.0;
  double apart = 0.0;
  std::vector<double> mean(8, 0.0);
  const auto total = static_cast<double>(std::accumulate(loads.begin(), loads.end(), std::int64_t{0}));
  for (const std::vector<double>& scenario : scenarios) {
    EXPECT_NEAR(std::accumulate(scenario.begin(), scenario.end(), 0.0), 1.0, 1e-9);
    const auto off = [&](std::size_t expert) { return scenario[expert] - static_cast<double>(loads[expert]) / total; };
    together += off(0) * off(1);
    apart += off(0) * off(2);
    for (std::size_t expert = 0; expert < 8; ++expert) mean[expert] += scenario[expert] / 400.0;
  }
  EXPECT_GT(together, 0.0);
  EXPECT_LT(apart, 0.0);
  for (std::size_t expert = 0; expert < 8; ++expert) {
    EXPECT_NEAR(mean[expert], static_cast<double>(loads[expert]) / total, 0.02) << expert;
  }
}

TEST(WindowSearch, PutsExpertsThatAreHotTogetherOnDifferentRanks) {
  const Windows windows = in_parts(taking_turns(16));
  const std::vector<std::int64_t> loads = mix_windows(windows, Objective::kTokens);
  // Both pairs together, as bad as can be: the mixture is even all the same.
  SharedPack start = share_evenly({.begin = {0, 4, 8}, .expert = {0, 1, 4, 5, 2, 3, 6, 7}}, loads);
  EXPECT_NEAR(static_cast<double>(largest_rank_load(start)), static_cast<double>(rank_loads_of(start)[0]), 1.0);
  const SharedPack found = search_scenarios(start, loads, draw_scenarios(loads, windows, {}), 4);
  const auto first = found.table.experts_of(0);
  const auto holds = [&](std::int32_t expert) { return std::find(first.begin(), first.end(), expert) != first.end(); };
  EXPECT_NE(holds(0), holds(1));
  EXPECT_NE(holds(2), holds(3));
  EXPECT_GT(mean_balancedness(found.table, quotas_of(found, loads), windows), 0.99);
}

TEST(WindowSearch, KeepsReplicasAndLosesNoLoad) {
  const Cluster cluster = Cluster::even(8, 80);
  const Windows windows = in_parts({lognormal_loads(1, 64, 0.8), lognormal_loads(2, 64, 0.8), zipf_loads(3, 64, 0.7)});
  const std::vector<std::int64_t> loads = mix_windows(windows, Objective::kTokens);
  const SharedPack start = share_best(pack_even(loads, cluster.slots_of_rank), loads);
  const std::vector<std::int32_t> counts = start.table.replica_counts(64);
  const auto scenarios = draw_scenarios(loads, windows, {.num_scenarios = 32});
  const SharedPack found = search_scenarios(start, loads, scenarios, 2);
  expect_sound(found.table, 64, cluster);
  EXPECT_EQ(found.table.replica_counts(64), counts);
  std::vector<std::int64_t> shared(64, 0);
  for (std::size_t slot = 0; slot < found.share.size(); ++slot) {
    EXPECT_GE(found.share[slot], 0);
    shared[static_cast<std::size_t>(found.table.expert[slot])] += found.share[slot];
  }
  EXPECT_EQ(shared, loads);
  EXPECT_GE(mean_balancedness(found.table, quotas_of(found, loads), scenarios),
            mean_balancedness(start.table, quotas_of(start, loads), scenarios));
}

TEST(WindowSearch, PlansForWhatComesAsForWhatWas) {
  // Two topics, each with its own hot experts, in random parts: planned on some mixtures, scored on others.
  const std::vector<std::vector<double>> topics = in_parts({zipf_loads(11, 64, 0.8), zipf_loads(12, 64, 0.8)});
  PhiloxStream stream = test::numbers(5);
  const auto mixtures = [&](std::size_t num_windows) {
    Windows windows(num_windows, std::vector<double>(64));
    for (std::vector<double>& window : windows) {
      const double part = uniform(stream);
      for (std::size_t expert = 0; expert < 64; ++expert) {
        window[expert] = part * topics[0][expert] + (1.0 - part) * topics[1][expert];
      }
    }
    return windows;
  };
  PlanRequest request;
  request.windows = mixtures(16);
  request.cluster = Cluster::even(8, 80);
  const Windows next = mixtures(40);
  const Plan of_mean = plan_placement(request);
  request.num_candidates = 8;
  const Plan of_windows = plan_placement(request);
  EXPECT_GT(mean_balancedness(of_windows.placement, of_windows.quotas, next),
            mean_balancedness(of_mean.placement, of_mean.quotas, next) + 0.01);
  EXPECT_EQ(plan_placement(request).placement, of_windows.placement);
}

/// Of all placements with full slots the best one with any split, by looking at all of them.
double best_of_all(const Cluster& cluster, const std::vector<double>& loads, SlotTable& table, std::size_t slot) {
  if (slot == table.expert.size()) {
    const std::vector<std::int32_t> counts = table.replica_counts(static_cast<std::int32_t>(loads.size()));
    if (std::find(counts.begin(), counts.end(), 0) != counts.end()) return 1e300;
    return test::least_largest_load(table, loads);
  }
  double best = 1e300;
  for (std::int32_t expert = kEmptySlot; expert < static_cast<std::int32_t>(loads.size()); ++expert) {
    // Slots of a rank in ascending order, so that each set is looked at once.
    const bool is_first =
        std::find(table.begin.begin(), table.begin.end(), static_cast<std::int32_t>(slot)) != table.begin.end();
    if (!is_first && expert != kEmptySlot && table.expert[slot - 1] >= expert) continue;
    table.expert[slot] = expert;
    best = std::min(best, best_of_all(cluster, loads, table, slot + 1));
  }
  return best;
}

TEST(ComponentBound, IsBelowTheBestOfAllPlacementsAndTellsMoreThanTheMean) {
  int num_above_mean = 0;
  for (std::uint64_t seed = 0; seed < 24; ++seed) {
    const Cluster cluster = Cluster::even(3, 6);
    const std::vector<double> drawn = seed % 2 == 0 ? zipf_loads(seed, 5, 1.5) : lognormal_loads(seed, 5, 1.0);
    std::vector<std::int64_t> loads;
    for (const double load : drawn) loads.push_back(static_cast<std::int64_t>(load * 1e6));
    SlotTable table = SlotTable::empty(cluster.slots_of_rank);
    const double best = best_of_all(cluster, {loads.begin(), loads.end()}, table, 0);
    const double bound = component_bound(loads, cluster);
    EXPECT_LE(bound, best * (1.0 + 1e-6)) << seed;
    const double mean = static_cast<double>(std::accumulate(loads.begin(), loads.end(), std::int64_t{0})) / 3.0;
    if (bound > mean * 1.001) ++num_above_mean;
  }
  EXPECT_GE(num_above_mean, 8);
}

TEST(ComponentBound, SaysThatFewSparesOnManyRanksDoNotReachNineTenths) {
  const Cluster cluster = Cluster::even(72, 288);
  const std::vector<std::int64_t> loads = mix_windows({zipf_loads(1, 256, 1.0)}, Objective::kTokens);
  const double bound = placement_bound(loads, cluster);
  EXPECT_LT(bound, 0.8925);
  PlanRequest request;
  request.windows = {zipf_loads(1, 256, 1.0)};
  request.cluster = cluster;
  request.num_candidates = 64;
  const Plan plan = plan_placement(request);
  EXPECT_LE(plan.after, bound);
  EXPECT_GE(plan.after, bound - 0.0005);
  // With a slot more on every rank nothing is in the way.
  EXPECT_EQ(component_bound(loads, Cluster::even(72, 360)), 0.0);
}

}  // namespace
}  // namespace epistle::balance
