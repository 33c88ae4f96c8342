// Whether one set of times differs from another, without a guess at how times are distributed.
#pragma once

#include <optional>
#include <span>
#include <string_view>

namespace epistle {

inline constexpr double kConfidence = 0.95;

/// How much longer b takes than a.
struct Difference {
  double estimate = 0.0;
  double low = 0.0;  ///< the interval that holds the true one with kConfidence
  double high = 0.0;
};

/// a[i] and b[i] were measured in the same iteration: the median of their differences, with the interval of the sign
/// test. Nothing with fewer than six pairs, which no interval of that confidence can come from.
[[nodiscard]] std::optional<Difference> paired_difference(std::span<const double> a, std::span<const double> b);

/// Of two runs: the median of all differences between them (Hodges and Lehmann), with the interval of the rank sum
/// test. It does not know what changed between the runs. Nothing with fewer than six samples in one of them.
[[nodiscard]] std::optional<Difference> unpaired_difference(std::span<const double> a, std::span<const double> b);

/// "faster", "slower", "no difference shown" or "too few rounds".
[[nodiscard]] std::string_view verdict(const std::optional<Difference>& difference) noexcept;

}  // namespace epistle
