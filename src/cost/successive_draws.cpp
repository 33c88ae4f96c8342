#include "cost/successive_draws.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>

#include "core/reject.hpp"
#include "cost/bit_counts.hpp"
#include "cost/exchange_counts.hpp"

namespace epistle {
namespace {

/// Probability that two counts together stay below their size.
double below_size(const BitCounts& a, const BitCounts& b) {
  double sum = 0.0;
  double ends = 0.0;
  for (std::size_t idx = 0; idx < a.size(); ++idx) {
    ends += b[idx];
    sum += a[a.size() - 1 - idx] * ends;
  }
  return sum;
}

/// The groups of one draw, and what their clocks have done by a time.
class GroupClocks {
 public:
  GroupClocks(std::span<const double> popularity, std::int32_t top_k, std::span<const std::int32_t> group_of_expert,
              std::int32_t num_groups)
      : popularity_(popularity),
        group_of_expert_(group_of_expert),
        rates_(static_cast<std::size_t>(num_groups), 0.0),
        nothing_(no_bits(static_cast<std::size_t>(top_k))) {
    for (std::size_t expert = 0; expert < popularity.size(); ++expert) {
      rates_[static_cast<std::size_t>(group_of_expert[expert])] += popularity[expert];
    }
  }

  [[nodiscard]] std::span<const double> rates() const noexcept { return rates_; }

  /// Adds `step` times the integrand in the logarithm of time.
  void add(double time, double step, std::vector<double>& hits) {
    groups_.assign(rates_.size(), nothing_);
    for (std::size_t expert = 0; expert < popularity_.size(); ++expert) {
      add_bit(groups_[static_cast<std::size_t>(group_of_expert_[expert])], -std::expm1(-popularity_[expert] * time));
    }
    behind_.assign(rates_.size() + 1, nothing_);
    for (std::size_t group = rates_.size(); group-- > 0;) behind_[group] = joined(groups_[group], behind_[group + 1]);
    BitCounts before = nothing_;
    for (std::size_t group = 0; group < rates_.size(); ++group) {
      const double rings = rates_[group] * time;
      hits[group] += step * rings * std::exp(-rings) * below_size(before, behind_[group + 1]);
      before = joined(before, groups_[group]);
    }
  }

 private:
  std::span<const double> popularity_;
  std::span<const std::int32_t> group_of_expert_;
  std::vector<double> rates_;
  BitCounts nothing_;
  std::vector<BitCounts> groups_;
  std::vector<BitCounts> behind_;  // products of a group and all after it
};

}  // namespace

std::vector<double> group_hits(std::span<const double> popularity, std::int32_t top_k,
                               std::span<const std::int32_t> group_of_expert, std::int32_t num_groups) {
  const double total = std::accumulate(popularity.begin(), popularity.end(), 0.0);
  double smallest = total;
  std::int32_t num_used = 0;
  for (const double share : popularity) {
    if (share < 0.0) reject("popularities must not be negative");
    if (share <= 0.0) continue;
    ++num_used;
    smallest = std::min(smallest, share);
  }
  if (top_k < 1 || top_k > num_used) reject("draws need a top_k of at least 1 and as many experts of any popularity");
  std::vector<double> shares(popularity.begin(), popularity.end());
  for (double& share : shares) share /= total;
  GroupClocks clocks(shares, top_k, group_of_expert, num_groups);
  std::vector<double> hits(clocks.rates().size(), 0.0);
  if (top_k == num_used) {
    for (std::size_t group = 0; group < hits.size(); ++group) hits[group] = clocks.rates()[group] > 0.0 ? 1.0 : 0.0;
    return hits;
  }
  // In the logarithm of time the integrand is analytic and dies out at both ends, so sums of equal steps converge
  // faster than any power of the step: halving this one changes nothing before the seventh digit.
  constexpr double kStep = 0.25;
  constexpr double kFirstTime = 1e-8;  // of the mean time of the first ring, which is 1
  constexpr double kLastRings = 40.0;  // exp(-40): by then all have rung
  const double begin = std::log(kFirstTime);
  const auto num_steps = static_cast<int>(std::ceil((std::log(kLastRings * total / smallest) - begin) / kStep));
  for (int step = 0; step < num_steps; ++step) clocks.add(std::exp(begin + kStep * step), kStep, hits);
  for (double& hit : hits) hit = std::min(hit, 1.0);
  return hits;
}

std::vector<double> popularity_of_inclusion(std::span<const double> inclusion) {
  const double sum = std::accumulate(inclusion.begin(), inclusion.end(), 0.0);
  const auto top_k = static_cast<std::int32_t>(std::lround(sum));
  constexpr double kLargest = 1.0 - 1e-9;
  std::vector<double> popularity(inclusion.size(), 0.0);
  std::vector<double> rates(inclusion.size(), 0.0);
  for (std::size_t expert = 0; expert < inclusion.size(); ++expert) {
    if (inclusion[expert] < 0.0) reject("probabilities must not be negative");
    rates[expert] = -std::log1p(-std::min(inclusion[expert], kLargest));
  }
  popularity = rates;
  constexpr int kMaxRounds = 30;
  constexpr double kCloseEnough = 1e-6;
  for (int round = 0; round < kMaxRounds; ++round) {
    const std::vector<double> reached = inclusion_probabilities(popularity, top_k);
    double worst = 0.0;
    for (std::size_t expert = 0; expert < reached.size(); ++expert) {
      if (rates[expert] <= 0.0) continue;
      const double rate = -std::log1p(-std::min(reached[expert], kLargest));
      worst = std::max(worst, std::fabs(reached[expert] - inclusion[expert]));
      popularity[expert] *= rates[expert] / rate;
    }
    if (worst < kCloseEnough) break;
  }
  return popularity;
}

}  // namespace epistle
