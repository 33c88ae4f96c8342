#include "balance/eplb.hpp"

#include <algorithm>
#include <cstddef>
#include <numeric>

#include "core/reject.hpp"

namespace epistle::balance {
namespace {

struct Packed {
  std::vector<std::int32_t> pack;   // [num_items]
  std::vector<std::int32_t> place;  // [num_items]; in its pack
};

/// Items in descending load, each to the lightest pack that is not full; all packs hold equally many.
Packed pack_evenly(std::span<const double> loads, std::int32_t num_packs) {
  const std::size_t num_items = loads.size();
  const auto items_per_pack = static_cast<std::int32_t>(num_items) / num_packs;
  Packed packed{std::vector<std::int32_t>(num_items), std::vector<std::int32_t>(num_items, 0)};
  if (items_per_pack == 1) {
    std::iota(packed.pack.begin(), packed.pack.end(), 0);
    return packed;
  }
  std::vector<std::size_t> order(num_items);
  std::iota(order.begin(), order.end(), std::size_t{0});
  // Published in fp32: loads that differ by less are equal.
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return static_cast<float>(loads[a]) > static_cast<float>(loads[b]);
  });
  std::vector<double> pack_load(static_cast<std::size_t>(num_packs), 0.0);
  std::vector<std::int32_t> num_held(static_cast<std::size_t>(num_packs), 0);
  for (const std::size_t item : order) {
    std::size_t lightest = pack_load.size();
    for (std::size_t pack = 0; pack < pack_load.size(); ++pack) {
      if (num_held[pack] < items_per_pack && (lightest == pack_load.size() || pack_load[pack] < pack_load[lightest])) {
        lightest = pack;
      }
    }
    packed.pack[item] = static_cast<std::int32_t>(lightest);
    packed.place[item] = num_held[lightest]++;
    pack_load[lightest] += loads[item];
  }
  return packed;
}

struct Replicas {
  std::vector<std::int32_t> expert;  // [num_slots]
  std::vector<std::int32_t> count;   // [num_experts]
};

Replicas replicate(std::span<const double> loads, std::int32_t num_slots) {
  Replicas replicas{std::vector<std::int32_t>(loads.size()), std::vector<std::int32_t>(loads.size(), 1)};
  std::iota(replicas.expert.begin(), replicas.expert.end(), 0);
  while (static_cast<std::int32_t>(replicas.expert.size()) < num_slots) {
    std::size_t hottest = 0;
    for (std::size_t expert = 1; expert < loads.size(); ++expert) {
      if (loads[expert] / replicas.count[expert] > loads[hottest] / replicas.count[hottest]) hottest = expert;
    }
    replicas.expert.push_back(static_cast<std::int32_t>(hottest));
    ++replicas.count[hottest];
  }
  return replicas;
}

/// Replicas of a node's experts in its slots, rank by rank. Experts by their place in `loads`.
std::vector<std::int32_t> place_in_node(std::span<const double> loads, std::int32_t num_slots, std::int32_t num_ranks) {
  const Replicas replicas = replicate(loads, num_slots);
  std::vector<double> slot_load;
  slot_load.reserve(replicas.expert.size());
  for (const std::int32_t expert : replicas.expert) {
    const auto e = static_cast<std::size_t>(expert);
    slot_load.push_back(loads[e] / replicas.count[e]);
  }
  const Packed packed = pack_evenly(slot_load, num_ranks);
  const std::int32_t slots_per_rank = num_slots / num_ranks;
  std::vector<std::int32_t> slots(static_cast<std::size_t>(num_slots));
  for (std::size_t item = 0; item < slots.size(); ++item) {
    slots[static_cast<std::size_t>(packed.pack[item] * slots_per_rank + packed.place[item])] = replicas.expert[item];
  }
  return slots;
}

}  // namespace

const char* eplb_obstacle(std::int32_t num_experts, const EplbShape& shape) noexcept {
  if (num_experts < 1 || shape.num_groups < 1 || shape.num_nodes < 1 || shape.num_ranks < 1) {
    return "EPLB needs at least one expert, group, node and rank";
  }
  if (shape.num_slots < num_experts) return "EPLB needs a slot for every expert";
  if (num_experts % shape.num_groups != 0) return "EPLB needs groups of equally many experts";
  if (shape.num_ranks % shape.num_nodes != 0) return "EPLB needs equally many ranks on every node";
  if (shape.num_slots % shape.num_ranks != 0) return "EPLB needs equally many slots on every rank";
  return nullptr;
}

std::vector<std::int32_t> rebalance_experts(std::span<const double> loads, const EplbShape& shape) {
  const auto num_experts = static_cast<std::int32_t>(loads.size());
  if (const char* const obstacle = eplb_obstacle(num_experts, shape)) reject(obstacle);
  // Groups that do not divide among the nodes are not kept together: all is one node then.
  const bool keeps_groups = shape.num_groups % shape.num_nodes == 0;
  const std::int32_t num_groups = keeps_groups ? shape.num_groups : 1;
  const std::int32_t num_nodes = keeps_groups ? shape.num_nodes : 1;
  const std::int32_t group_size = num_experts / num_groups;

  std::vector<double> group_load(static_cast<std::size_t>(num_groups), 0.0);
  for (std::size_t expert = 0; expert < loads.size(); ++expert) {
    group_load[expert / static_cast<std::size_t>(group_size)] += loads[expert];
  }
  const Packed groups = pack_evenly(group_load, num_nodes);

  std::vector<std::int32_t> slots;
  for (std::int32_t node = 0; node < num_nodes; ++node) {
    std::vector<std::int32_t> experts(static_cast<std::size_t>(num_experts / num_nodes));
    for (std::int32_t group = 0; group < num_groups; ++group) {
      const auto g = static_cast<std::size_t>(group);
      if (groups.pack[g] != node) continue;
      const auto first = experts.begin() + groups.place[g] * group_size;
      std::iota(first, first + group_size, group * group_size);
    }
    std::vector<double> node_loads;
    node_loads.reserve(experts.size());
    for (const std::int32_t expert : experts) node_loads.push_back(loads[static_cast<std::size_t>(expert)]);
    for (const std::int32_t place :
         place_in_node(node_loads, shape.num_slots / num_nodes, shape.num_ranks / num_nodes)) {
      slots.push_back(experts[static_cast<std::size_t>(place)]);
    }
  }
  return slots;
}

}  // namespace epistle::balance
