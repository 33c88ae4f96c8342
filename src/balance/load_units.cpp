#include "balance/load_units.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <numeric>

#include "balance/component_bound.hpp"
#include "balance/pack.hpp"

namespace epistle::balance {
namespace {

// So that sums of twice as much still fit where a load and a rank share a word.
constexpr std::int64_t kTotalUnits = kMaxTotalLoad / 2;

}  // namespace

std::vector<std::int64_t> mix_windows(const std::vector<std::vector<double>>& windows, Objective objective,
                                      double half_life) {
  std::vector<double> mixed(windows.front().size(), 0.0);
  double weight = 1.0;
  const double fade = half_life > 0.0 ? std::exp2(-1.0 / half_life) : 1.0;
  for (auto window = windows.rbegin(); window != windows.rend(); ++window, weight *= fade) {
    if (objective == Objective::kActivatedExperts) {
      for (std::size_t expert = 0; expert < mixed.size(); ++expert) {
        mixed[expert] += (*window)[expert] > 0.0 ? weight : 0.0;
      }
      continue;
    }
    const double total = std::accumulate(window->begin(), window->end(), 0.0);
    if (total <= 0.0) continue;
    for (std::size_t expert = 0; expert < mixed.size(); ++expert) {
      mixed[expert] += weight * (*window)[expert] / total;
    }
  }
  const double total = std::accumulate(mixed.begin(), mixed.end(), 0.0);
  std::vector<std::int64_t> loads(mixed.size(), 0);
  if (total <= 0.0) return loads;
  for (std::size_t expert = 0; expert < mixed.size(); ++expert) {
    loads[expert] = static_cast<std::int64_t>(mixed[expert] / total * static_cast<double>(kTotalUnits));
  }
  return loads;
}

double placement_bound(const std::vector<std::int64_t>& loads, const Cluster& cluster) {
  std::vector<std::int64_t> hottest(loads);
  std::sort(hottest.begin(), hottest.end(), std::greater<>());
  const std::size_t num_experts = loads.size();
  std::vector<double> sum_to(num_experts + 1, 0.0);  // of the hottest
  for (std::size_t place = 0; place < num_experts; ++place) {
    sum_to[place + 1] = sum_to[place] + static_cast<double>(hottest[place]);
  }
  std::vector<std::int32_t> slots;
  for (const std::int32_t num_slots : cluster.slots_of_rank) {
    if (num_slots > 0) slots.push_back(num_slots);
  }
  std::sort(slots.begin(), slots.end());
  const double total = sum_to[num_experts];
  const double mean = total / static_cast<double>(slots.size());
  if (total <= 0.0) return 1.0;
  // Of the hottest h experts all replicas lie on some k ranks. Slots there that hold neither them nor a replica more of
  // another expert hold whole experts, at least the coolest ones. Of replicas more than one there are `num_extra`.
  const auto num_extra = static_cast<std::int64_t>(cluster.num_slots()) - static_cast<std::int64_t>(num_experts);
  double largest = std::max(mean, component_bound(loads, cluster));
  for (std::size_t hot = 1; hot <= std::min(num_experts, slots.size()); ++hot) {
    double least = 0.0;
    std::int64_t num_slots = 0;
    const std::int64_t max_ranks =
        std::min<std::int64_t>(static_cast<std::int64_t>(slots.size()), static_cast<std::int64_t>(hot) + num_extra);
    for (std::int64_t ranks = 1; ranks <= max_ranks; ++ranks) {
      num_slots += slots[static_cast<std::size_t>(ranks - 1)];
      const std::int64_t whole = std::clamp<std::int64_t>(num_slots - static_cast<std::int64_t>(hot) - num_extra, 0,
                                                          static_cast<std::int64_t>(num_experts - hot));
      const double cool = total - sum_to[num_experts - static_cast<std::size_t>(whole)];
      const double load = (sum_to[hot] + cool) / static_cast<double>(ranks);
      if (ranks == 1 || load < least) least = load;
    }
    largest = std::max(largest, least);
  }
  return mean / largest;
}

}  // namespace epistle::balance
