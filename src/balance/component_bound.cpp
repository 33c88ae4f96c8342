#include "balance/component_bound.hpp"

#include <optional>
#include <vector>

#include "balance/hot_components.hpp"

namespace epistle::balance {
namespace {

constexpr int kBoundHalvings = 14;  // of what lies between a load and twice that
// What is not decided by then counts as possible; 256 experts of zipf 1.0 in 288 slots of 72 ranks take fewer.
constexpr std::int64_t kBoundSteps = 100'000;

}  // namespace

double component_bound(std::span<const std::int64_t> loads, const Cluster& cluster) {
  const std::optional<std::int32_t> slots = even_slots(cluster.slots_of_rank);
  if (!slots) return 0.0;
  const std::int64_t num_ranks = cluster.num_holders();
  // With a slot to spare on every rank all ranks can be one component.
  if (num_ranks * *slots - static_cast<std::int64_t>(loads.size()) >= num_ranks - 1) return 0.0;
  const HotComponents components(loads, num_ranks, *slots);
  std::vector<HotComponent> way;
  const auto is_possible = [&](double largest) {
    return components.find(largest, kBoundSteps, way) != HotComponents::Answer::kNo;
  };
  double below = components.total() / static_cast<double>(num_ranks);
  if (is_possible(below)) return below;
  double above = 2.0 * below;
  while (above < components.total() && !is_possible(above)) {
    below = above;
    above *= 2.0;
  }
  for (int halving = 0; halving < kBoundHalvings; ++halving) {
    const double between = (below + above) / 2.0;
    (is_possible(between) ? above : below) = between;
  }
  return below;
}

}  // namespace epistle::balance
