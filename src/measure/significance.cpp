#include "measure/significance.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "measure/statistics.hpp"

namespace epistle {
namespace {

constexpr double kNormalQuantile = 1.959964;  // of (1 + kConfidence) / 2
constexpr std::size_t kMinSamples = 6;        // 2 * 0.5^6 < 1 - kConfidence < 2 * 0.5^5
constexpr std::size_t kMaxExact = 60;         // larger binomials are close enough to a normal distribution
constexpr std::size_t kMaxUnpaired = 1000;    // samples of a run; all pairs of them are sorted

/// The largest k for which fewer than k of n fair coins show heads with a probability of at most (1 - kConfidence) / 2.
std::size_t sign_test_rank(std::size_t n) {
  const auto size = static_cast<double>(n);
  if (n > kMaxExact) {
    return static_cast<std::size_t>(std::max(1.0, std::floor(size / 2 - kNormalQuantile * std::sqrt(size) / 2)));
  }
  double term = std::pow(0.5, size);
  double sum = term;
  std::size_t k = 0;
  while (sum <= (1.0 - kConfidence) / 2) {
    term *= static_cast<double>(n - k) / static_cast<double>(k + 1);
    sum += term;
    ++k;
  }
  return k;
}

Difference from_sorted(const std::vector<double>& sorted, std::size_t rank) {
  return {.estimate = summarize(sorted).median, .low = sorted[rank - 1], .high = sorted[sorted.size() - rank]};
}

/// Evenly spaced ones where there are too many.
std::vector<double> thinned(std::span<const double> samples) {
  const std::size_t num = std::min(samples.size(), kMaxUnpaired);
  std::vector<double> kept;
  kept.reserve(num);
  for (std::size_t idx = 0; idx < num; ++idx) kept.push_back(samples[idx * samples.size() / num]);
  return kept;
}

}  // namespace

std::optional<Difference> paired_difference(std::span<const double> a, std::span<const double> b) {
  const std::size_t num = std::min(a.size(), b.size());
  if (num < kMinSamples) return std::nullopt;
  std::vector<double> differences;
  differences.reserve(num);
  for (std::size_t idx = 0; idx < num; ++idx) differences.push_back(b[idx] - a[idx]);
  std::sort(differences.begin(), differences.end());
  return from_sorted(differences, sign_test_rank(num));
}

std::optional<Difference> unpaired_difference(std::span<const double> a, std::span<const double> b) {
  if (std::min(a.size(), b.size()) < kMinSamples) return std::nullopt;
  const std::vector<double> kept_a = thinned(a);
  const std::vector<double> kept_b = thinned(b);
  std::vector<double> differences;
  differences.reserve(kept_a.size() * kept_b.size());
  for (const double of_a : kept_a) {
    for (const double of_b : kept_b) differences.push_back(of_b - of_a);
  }
  std::sort(differences.begin(), differences.end());
  const auto num_a = static_cast<double>(kept_a.size());
  const auto num_b = static_cast<double>(kept_b.size());
  const double rank = num_a * num_b / 2 - kNormalQuantile * std::sqrt(num_a * num_b * (num_a + num_b + 1) / 12);
  return from_sorted(differences, static_cast<std::size_t>(std::max(1.0, std::floor(rank))));
}

std::string_view verdict(const std::optional<Difference>& difference) noexcept {
  if (!difference) return "too few rounds";
  if (difference->high < 0.0) return "faster";
  if (difference->low > 0.0) return "slower";
  return "no difference shown";
}

}  // namespace epistle
