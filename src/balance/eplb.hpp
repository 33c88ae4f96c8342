// The published EPLB algorithm (DeepSeek, 2025), as a baseline: replicas for the experts with the most load per
// replica, packing in descending load, groups of experts to nodes first where they divide. It knows no current
// placement, may put two replicas of an expert on one rank, and takes it that replicas share a load evenly.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace epistle::balance {

struct EplbShape {
  std::int32_t num_slots = 0;
  std::int32_t num_groups = 1;
  std::int32_t num_nodes = 1;
  std::int32_t num_ranks = 1;
};

/// Why EPLB cannot serve this; empty = it can. It wants slots, experts and ranks that divide.
[[nodiscard]] const char* eplb_obstacle(std::int32_t num_experts, const EplbShape& shape) noexcept;

/// The expert of every slot of one layer, ranks in order. Throws kInvalidArgument where there is an obstacle.
[[nodiscard]] std::vector<std::int32_t> rebalance_experts(std::span<const double> loads, const EplbShape& shape);

}  // namespace epistle::balance
