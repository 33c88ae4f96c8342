// Loads as the balancer computes with them, and what no placement can do better.
#pragma once

#include <cstdint>
#include <vector>

#include "balance/slot_table.hpp"

namespace epistle::balance {

enum class Objective : std::int32_t {
  kTokens,            ///< tokens of a rank: prefill, training
  kActivatedExperts,  ///< experts of a rank that a batch needs at all: decode, where weights are read, not multiplied
};

/// Loads in whole units, the sum of which is always the same: what all parts of the balancer compute with. Every window
/// counts alike, whatever its tokens; with `half_life` windows (0 = never) the older ones, which come first, count
/// less.
[[nodiscard]] std::vector<std::int64_t> mix_windows(const std::vector<std::vector<double>>& windows,
                                                    Objective objective, double half_life = 0.0);

/// Least possible ratio of mean to largest rank load, over all placements with these slots and all splits.
[[nodiscard]] double placement_bound(const std::vector<std::int64_t>& loads, const Cluster& cluster);

}  // namespace epistle::balance
