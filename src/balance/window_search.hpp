// Betters a placement for loads that are not known for sure: experts change places, and quotas are shifted, so that the
// mean of the largest rank load over many loads that may come is least. What may come is drawn from windows that were
// seen: what varied together there varies together again, so that experts that are hot at the same time end up on
// different ranks, and a hot expert that varies much lies where its rank has others that do not.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "balance/pack.hpp"

namespace epistle::balance {

struct WindowSearchRules {
  double half_life = 0.0;  ///< in windows, as in PlanRequest
  /// Loads that are drawn. Fewer are learnt by heart: the placement is good for them and for no others.
  std::int32_t num_scenarios = 192;
  std::int32_t max_rounds = 4;  ///< over all pairs of slots; it ends earlier where nothing helps any more
  /// How far drawn loads are from the mean, in deviations of a window. A batch is as long as many windows and varies
  /// less than one, but more than as many unrelated ones: text goes on about what it is about.
  double spread = 0.5;
  double own_spread = 0.2;  ///< of every expert by itself: windows are too few to tell all that may happen
};

/// Loads like those of `parts` ([num_windows][num_experts], each of sum 1, the oldest first) around `loads`:
/// [num_scenarios][num_experts], each of sum 1. The same on all machines of a kind.
[[nodiscard]] std::vector<std::vector<double>> draw_scenarios(std::span<const std::int64_t> loads,
                                                              const std::vector<std::vector<double>>& parts,
                                                              const WindowSearchRules& rules);

/// `start` with experts exchanged so that it serves `scenarios` best with one set of shares. Which experts have how
/// many replicas stays. The shares are those of the search, in the units of `loads`.
[[nodiscard]] SharedPack search_scenarios(SharedPack start, std::span<const std::int64_t> loads,
                                          const std::vector<std::vector<double>>& scenarios, std::int32_t max_rounds);

}  // namespace epistle::balance
