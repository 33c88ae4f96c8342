#include "cost/pair_counts.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <string>

#include "core/reject.hpp"
#include "cost/bit_counts.hpp"

namespace epistle {
namespace {

struct CountMoments {
  double mean = 0.0;
  double mean_square = 0.0;
};

/// Probability of no expert under weights base[j] exp(a j + b j^2) that have these moments, by Newton's method on the
/// concave dual. Where moments lie at the edge of what is possible, the weights near them are taken.
double tilted_zero(const BitCounts& base, const CountMoments& wanted) {
  double a = 0.0;
  double b = 0.0;
  std::vector<double> weights(base.size());
  constexpr int kMaxRounds = 60;
  constexpr double kCloseEnough = 1e-10;
  constexpr double kSingular = 1e-14;
  for (int round = 0; round < kMaxRounds; ++round) {
    std::array<double, 5> moments{};  // sums of powers 0 to 4
    for (std::size_t count = 0; count < base.size(); ++count) {
      const auto j = static_cast<double>(count);
      weights[count] = base[count] * std::exp(a * j + b * j * j);
      double power = weights[count];
      for (double& moment : moments) {
        moment += power;
        power *= j;
      }
    }
    if (moments[0] <= 0.0) return 1.0;
    for (double& weight : weights) weight /= moments[0];
    for (std::size_t order = moments.size(); order-- > 0;) moments[order] /= moments[0];
    const double mean_gap = wanted.mean - moments[1];
    const double square_gap = wanted.mean_square - moments[2];
    const double variance = moments[2] - moments[1] * moments[1];
    const double covariance = moments[3] - moments[1] * moments[2];
    const double square_variance = moments[4] - moments[2] * moments[2];
    const double determinant = variance * square_variance - covariance * covariance;
    if (std::fabs(mean_gap) + std::fabs(square_gap) < kCloseEnough || determinant < kSingular) break;
    const double step_a = (mean_gap * square_variance - square_gap * covariance) / determinant;
    const double step_b = (square_gap * variance - mean_gap * covariance) / determinant;
    // Small steps keep the exponents in range.
    const double scale = std::min(1.0, 1.0 / std::max(std::fabs(step_a) + std::fabs(step_b), 1.0));
    a += scale * step_a;
    b += scale * step_b;
  }
  return weights.front();
}

}  // namespace

PairCounts::PairCounts(std::int32_t num_experts, std::int32_t top_k) : num_experts_(num_experts), top_k_(top_k) {
  if (num_experts < 1 || num_experts > kMaxExperts) {
    reject(std::to_string(num_experts) + " experts; pairs are counted of 1 to " + std::to_string(kMaxExperts));
  }
  pairs_.assign(static_cast<std::size_t>(num_experts) * static_cast<std::size_t>(num_experts), 0);
}

std::uint32_t& PairCounts::pair(std::int32_t a, std::int32_t b) {
  return pairs_[static_cast<std::size_t>(a) * static_cast<std::size_t>(num_experts_) + static_cast<std::size_t>(b)];
}

void PairCounts::add_token(std::span<const std::int32_t> experts) {
  ++num_tokens_;
  for (const std::int32_t a : experts) {
    for (const std::int32_t b : experts) {
      if (a >= 0 && b >= 0) ++pair(a, b);
    }
  }
}

std::vector<double> PairCounts::inclusion() const {
  std::vector<double> shares(static_cast<std::size_t>(num_experts_), 0.0);
  for (std::size_t expert = 0; expert < shares.size() && num_tokens_ > 0; ++expert) {
    shares[expert] = static_cast<double>(pairs_[expert * (shares.size() + 1)]) / static_cast<double>(num_tokens_);
  }
  return shares;
}

double PairCounts::expected_distinct_groups(std::span<const std::int32_t> group_of_expert,
                                            std::int32_t num_groups) const {
  const auto num_used = static_cast<std::size_t>(num_groups);
  const std::size_t num_experts = group_of_expert.size();
  const std::vector<double> shares = inclusion();
  std::vector<CountMoments> moments(num_used);
  std::vector<BitCounts> groups(num_used, no_bits(static_cast<std::size_t>(top_k_) + 1));
  constexpr double kMostCertain = 1.0 - 1e-9;
  for (std::size_t a = 0; a < num_experts; ++a) {
    const auto group = static_cast<std::size_t>(group_of_expert[a]);
    moments[group].mean += shares[a];
    add_bit(groups[group], std::min(shares[a], kMostCertain));
    for (std::size_t b = 0; b < num_experts; ++b) {
      if (group_of_expert[b] != group_of_expert[a]) continue;
      moments[group].mean_square += static_cast<double>(pairs_[a * num_experts + b]) / static_cast<double>(num_tokens_);
    }
  }
  // Products of all groups behind one, and of those before it.
  std::vector<BitCounts> behind(num_used + 1, no_bits(groups.front().size()));
  for (std::size_t group = num_used; group-- > 0;) behind[group] = joined(groups[group], behind[group + 1]);
  BitCounts before = no_bits(groups.front().size());
  double distinct = 0.0;
  for (std::size_t group = 0; group < num_used; ++group) {
    const BitCounts others = joined(before, behind[group + 1]);
    BitCounts base(groups[group].size());
    for (std::size_t count = 0; count < base.size(); ++count) {
      base[count] = groups[group][count] * others[base.size() - 1 - count];
    }
    if (moments[group].mean > 0.0) distinct += 1.0 - tilted_zero(base, moments[group]);
    before = joined(before, groups[group]);
  }
  return distinct;
}

}  // namespace epistle
