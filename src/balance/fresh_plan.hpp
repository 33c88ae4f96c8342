// Placements from nothing that are as balanced as can be: packing, and a search where packing alone does not do.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "balance/pack.hpp"
#include "balance/slot_table.hpp"

namespace epistle::balance {

struct FreshRules {
  double tolerance = 0.0005;  ///< a rank may have this much more than the mean
  std::int32_t max_steps = 0;
  std::int32_t num_trials = 8;
};

/// All ranks alike.
[[nodiscard]] SharedPack plan_flat(std::span<const std::int64_t> loads, std::span<const std::int32_t> slots_of_rank,
                                   const FreshRules& rules);

/// Keeps the experts of a group in one domain, and lets a domain that has too little help with the hottest experts of
/// those that have too much.
[[nodiscard]] SharedPack plan_by_domain(std::span<const std::int64_t> loads, const Cluster& cluster,
                                        std::int32_t num_groups, const FreshRules& rules);

/// The domain of every expert's group in what plan_by_domain makes of it.
[[nodiscard]] std::vector<std::int32_t> choose_homes(std::span<const std::int64_t> loads, const Cluster& cluster,
                                                     std::int32_t num_groups);

/// Exchanges ranks of one size (and domain, with `within_domains`) so that as much as possible of what they hold is
/// what they hold now.
void relabel_ranks(const SlotTable& current, const Cluster& cluster, bool within_domains, SharedPack& pack);

}  // namespace epistle::balance
