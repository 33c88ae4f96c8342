// Experts of unequal popularity: integer popularities, and distinct draws in proportion to them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "routing/philox.hpp"

namespace epistle {

/// Popularity of each expert [num_experts], an integer >= 1, the largest being kTopPopularity: the place-th most
/// popular expert has place^-exponent of it. Which expert holds which place is a shuffle by `seed`, equal on all ranks.
[[nodiscard]] std::vector<std::uint64_t> zipf_popularity(std::int32_t num_experts, double exponent, std::uint64_t seed);

/// Popularity of each expert [num_experts] in proportion to exp(sigma * z), z standard normal by (seed, expert).
[[nodiscard]] std::vector<std::uint64_t> lognormal_popularity(std::int32_t num_experts, double sigma,
                                                              std::uint64_t seed);

/// Fine enough that rounding changes no share by more than one in 10^9; the sum over any number of experts that fits an
/// int32 stays below 2^61.
inline constexpr std::uint64_t kTopPopularity = std::uint64_t{1} << 30;

class PopularitySampler {
 public:
  /// Every popularity must be >= 1.
  explicit PopularitySampler(std::vector<std::uint64_t> popularity);

  /// Fills `experts` with distinct experts, each drawn in proportion to its popularity among those not yet drawn.
  void draw_distinct(PhiloxStream& random, std::span<std::int32_t> experts);

 private:
  [[nodiscard]] std::int32_t draw_one(PhiloxStream& random, std::uint64_t taken_popularity) const;

  std::vector<std::uint64_t> popularity_;
  std::vector<std::uint64_t> cumulative_;  // inclusive sums
  std::vector<std::uint8_t> taken_;        // [num_experts]; all 0 between calls
};

}  // namespace epistle
