// How fast loads change, as far as what was seen tells.
#pragma once

#include <cstdint>
#include <vector>

namespace epistle::balance {

/// The half life, in windows, with which the older windows would have foretold the newer ones best; 0 = all alike. Each
/// of some half lives is tried on what was seen: at every window the mean so far against the next `num_ahead` windows.
/// A load that stays needs all of its past, one that drifts only the latest. Windows as in PlanRequest, the oldest
/// first; of few windows nothing can be told, and all count alike.
[[nodiscard]] double choose_half_life(const std::vector<std::vector<double>>& windows, std::int32_t num_ahead);

}  // namespace epistle::balance
