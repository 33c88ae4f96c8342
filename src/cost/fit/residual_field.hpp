// What a fitted curve leaves unexplained: a smooth random field over the logarithms of the shape, and what the curve's
// constants may still be wrong by. Near a measurement it corrects the curve; far from all, and where only constants
// matter that no measurement tells, it says how far off the curve may be. Observations of one library share more of
// both than those of two (partial pooling).
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace epistle {

struct FieldPoint {
  std::vector<std::string> path;  ///< whose measurement it is, the broadest name first
  std::vector<double> position;   ///< in doublings of the quantities of the shape
  /// By how much the logarithm of the curve moves where a constant moves by one standard deviation of its prior: of all
  /// libraries together, and of one against its relatives at the first level of the path (kPoolStep says of the next).
  /// Empty = no constant is in doubt.
  std::vector<double> slopes{};
  std::vector<double> pool_slopes{};
};

/// Relatives are the more alike the longer the part of the path that they share: two versions of a library on one GPU
/// differ by less than two GPUs. By so much of it at every further name.
inline constexpr double kPoolStep = 0.5;

/// Names that two paths share from the start.
[[nodiscard]] std::size_t shared_levels(const std::vector<std::string>& a, const std::vector<std::string>& b) noexcept;

struct FieldScales {
  std::vector<double> lengths;       ///< doublings over which the residual keeps its sign, per quantity
  std::vector<double> level_sigmas;  ///< share of each level of the path, level 0 = all observations
  double noise_sigma = 0.05;         ///< of one measurement
};

struct FieldValue {
  double mean = 0.0;
  double sigma = 0.0;  ///< of a new measurement: the noise included
};

class ResidualField {
 public:
  ResidualField() = default;
  /// `residuals` are logarithms of measured over predicted times. Scales start at `scales` and are raised to the
  /// likeliest ones near them.
  ResidualField(std::vector<FieldPoint> points, std::vector<double> residuals, FieldScales scales);

  [[nodiscard]] FieldValue at(const FieldPoint& point) const;
  [[nodiscard]] const FieldScales& scales() const noexcept { return scales_; }

 private:
  void solve();

  std::vector<FieldPoint> points_;
  std::vector<double> residuals_;
  FieldScales scales_;
  std::vector<double> factor_;   // of the covariance of the points
  std::vector<double> weights_;  // inverse covariance times residuals
};

}  // namespace epistle
