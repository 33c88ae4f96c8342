// What the constants of a curve leave unexplained, as a smooth random field over the logarithms of the shape: near a
// measurement it corrects the curve, far from all it says how far off the curve may be. Observations of one library
// share more of it than those of two (partial pooling).
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace epistle {

struct FieldPoint {
  std::vector<std::string> path;  ///< whose measurement it is, the broadest name first
  std::vector<double> position;   ///< in doublings of the quantities of the shape
};

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
