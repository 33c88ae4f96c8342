// How a benchmark loads experts by a power law, and what of that the busiest rank gets.
#pragma once

#include "cost/work.hpp"

namespace epistle {

/// Of the busiest rank, on average over draws.
struct RankLoad {
  double rows = 0;
  double active_experts = 0;  ///< with a row at least
};

/// Popularities are drawn independently of each other from a density that falls as x^-exponent, from 1 to 0.8 of the
/// tokens (from 0.01 to 2 where there are fewer rows than experts), scaled to the rows that there are; no expert gets a
/// token twice. So the collector of ai-dynamo/aiconfigurator describes it (Apache-2.0, 2026-11). The same on every
/// call.
[[nodiscard]] RankLoad power_law_load(const GemmShape& shape, double exponent);

}  // namespace epistle
