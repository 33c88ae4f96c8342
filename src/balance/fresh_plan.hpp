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

/// Shares that serve `loads` best in a placement. They begin with equal parts for all replicas, so that they are no
/// more uneven than they need to be: a rank that has parts of many experts is hit less by the change of one.
[[nodiscard]] SharedPack share_best(SlotTable table, std::span<const std::int64_t> loads);
/// Equal parts for all replicas.
[[nodiscard]] SharedPack share_evenly(SlotTable table, std::span<const std::int64_t> loads);
/// [num_ranks]
[[nodiscard]] std::vector<std::int64_t> rank_loads_of(const SharedPack& pack);
/// Over the mean of the ranks that have slots; 0 where there is no load.
[[nodiscard]] std::vector<double> in_parts_of_mean(std::span<const std::int64_t> rank_loads, const Cluster& cluster);
/// Of a rank; the balancedness is the mean over it.
[[nodiscard]] std::int64_t largest_rank_load(const SharedPack& pack);
/// Parts of its expert's load that each slot takes; equal ones where an expert has no load.
[[nodiscard]] std::vector<double> quotas_of(const SharedPack& pack, std::span<const std::int64_t> loads);

/// All ranks alike.
[[nodiscard]] SharedPack plan_flat(std::span<const std::int64_t> loads, std::span<const std::int32_t> slots_of_rank,
                                   const FreshRules& rules);

/// The same; where some rank stays above the mean, experts change places until that helps no more.
[[nodiscard]] SharedPack plan_thoroughly(std::span<const std::int64_t> loads,
                                         std::span<const std::int32_t> slots_of_rank, const FreshRules& rules);

struct WindowRules {
  std::int32_t num_candidates = 1;
  double half_life = 0.0;     ///< in windows
  bool counts_tokens = true;  ///< windows are of tokens, the batch's loads vary as they do
};
/// Of `num_candidates` placements for loads much like these the one with the best mean balancedness over `windows`;
/// then experts change places for loads that may come (window_search.hpp).
[[nodiscard]] SharedPack plan_for_windows(std::span<const std::int64_t> loads,
                                          const std::vector<std::vector<double>>& windows,
                                          std::span<const std::int32_t> slots_of_rank, const WindowRules& window_rules,
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
