#include "cost/power_law.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "routing/philox.hpp"

namespace epistle {
namespace {

/// Inverse of the distribution function of x^-exponent between low and high.
double power_law_quantile(double uniform, double exponent, double low, double high) {
  constexpr double kLogarithmic = 1e-6;  // nearer to 1 the power of the general form has no digits left
  const double power = 1.0 - exponent;
  if (std::fabs(power) < kLogarithmic) return low * std::pow(high / low, uniform);
  const double from = std::pow(low, power);
  return std::pow(from + uniform * (std::pow(high, power) - from), 1.0 / power);
}

/// Rows of every expert for `popularity`: none has more than there are tokens, and what is beyond goes to all others.
void scale_to_rows(std::vector<double>& popularity, double num_rows, double num_tokens) {
  constexpr int kRounds = 8;  // each fixes the experts that are full by then
  for (int round = 0; round < kRounds; ++round) {
    double full = 0.0;
    double others = 0.0;
    for (const double value : popularity) (value >= num_tokens && round > 0 ? full : others) += value;
    if (others <= 0.0 || full >= num_rows) return;
    const double factor = (num_rows - full) / others;
    for (double& value : popularity) {
      if (value < num_tokens || round == 0) value = std::min(value * factor, num_tokens);
    }
  }
}

}  // namespace

RankLoad power_law_load(const GemmShape& shape, double exponent) {
  constexpr std::uint32_t kDraws = 32;
  constexpr std::uint64_t kSeed = 1;
  constexpr double kUnit = 0x1p-32;
  const auto num_experts = static_cast<std::size_t>(shape.num_experts);
  const auto num_ranks = static_cast<std::size_t>(std::min(shape.num_ranks, shape.num_experts));
  const std::size_t per_rank = (num_experts + num_ranks - 1) / num_ranks;
  const double num_rows = shape.global_tokens * shape.top_k;
  const bool few = num_rows <= shape.num_experts;
  RankLoad load;
  std::vector<double> rows(num_experts);
  for (std::uint32_t draw = 0; draw < kDraws; ++draw) {
    PhiloxStream random(kSeed, {.stream = RandomStream::kPopularity, .rank = 0, .token = draw});
    for (double& value : rows) {
      value = power_law_quantile((random.next_u32() + 0.5) * kUnit, exponent, few ? 0.01 : 1.0,
                                 few ? 2.0 : std::max(0.8 * shape.global_tokens, 1.0));
    }
    scale_to_rows(rows, num_rows, shape.global_tokens);
    RankLoad busiest;
    for (std::size_t begin = 0; begin < num_experts; begin += per_rank) {
      const auto first = rows.begin() + static_cast<std::ptrdiff_t>(begin);
      const auto last = rows.begin() + static_cast<std::ptrdiff_t>(std::min(begin + per_rank, num_experts));
      RankLoad rank{.rows = std::accumulate(first, last, 0.0)};
      // Counts are whole: an expert of less than half a row has none, on average.
      for (auto value = first; value != last; ++value) rank.active_experts += std::min(*value, 1.0);
      if (rank.rows > busiest.rows) busiest = rank;
    }
    load.rows += busiest.rows / kDraws;
    load.active_experts += busiest.active_experts / kDraws;
  }
  load.rows = std::max(load.rows, 1.0);
  load.active_experts = std::clamp(load.active_experts, 1.0, load.rows);
  return load;
}

}  // namespace epistle
