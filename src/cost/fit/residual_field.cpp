#include "cost/fit/residual_field.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "cost/fit/least_squares.hpp"

namespace epistle {

std::size_t shared_levels(const std::vector<std::string>& a, const std::vector<std::string>& b) noexcept {
  std::size_t count = 0;
  while (count < a.size() && count < b.size() && a[count] == b[count]) ++count;
  return count;
}

namespace {

// More points than these say little about the scales, and their likelihood grows with the cube.
constexpr std::size_t kMaxPointsForScales = 160;

/// Distances and shared levels of all pairs, which do not depend on the sizes of the scales.
struct FieldPairs {
  std::size_t count = 0;
  std::size_t num_quantities = 0;
  std::vector<double> squares{};  // pair-major, per quantity
  std::vector<std::size_t> levels{};
  std::vector<double> constants{};  // what doubt of constants gives both
};

double smooth_correlation(double distance) noexcept {
  // Matern 3/2: once differentiable, as times are where one limit gives way to another.
  const double scaled = std::sqrt(3.0) * distance;
  return (1.0 + scaled) * std::exp(-scaled);
}

/// Variance that two observations share if they are at the same place: of all levels that both belong to.
double shared_variance(const FieldScales& scales, std::size_t levels) noexcept {
  double variance = 0.0;
  for (std::size_t level = 0; level <= levels && level < scales.level_sigmas.size(); ++level) {
    variance += scales.level_sigmas[level] * scales.level_sigmas[level];
  }
  return variance;
}

double dot(const std::vector<double>& a, const std::vector<double>& b) noexcept {
  double sum = 0.0;
  for (std::size_t idx = 0; idx < std::min(a.size(), b.size()); ++idx) sum += a[idx] * b[idx];
  return sum;
}

/// Of the constants of a library and its relatives: what all share, and a part of its own at every level.
double constants_covariance(const FieldPoint& a, const FieldPoint& b) {
  double pooled = 0.0;
  double of_level = 1.0;
  for (std::size_t level = 0; level < shared_levels(a.path, b.path); ++level) {
    pooled += of_level;
    of_level *= kPoolStep * kPoolStep;
  }
  return dot(a.slopes, b.slopes) + pooled * dot(a.pool_slopes, b.pool_slopes);
}

double covariance(const FieldScales& scales, const FieldPoint& a, const FieldPoint& b) {
  double square = 0.0;
  for (std::size_t idx = 0; idx < scales.lengths.size(); ++idx) {
    const double distance = (a.position[idx] - b.position[idx]) / scales.lengths[idx];
    square += distance * distance;
  }
  return shared_variance(scales, shared_levels(a.path, b.path)) * smooth_correlation(std::sqrt(square)) +
         constants_covariance(a, b);
}

FieldPairs make_pairs(const std::vector<FieldPoint>& points, std::size_t num_quantities) {
  FieldPairs pairs{.count = points.size(), .num_quantities = num_quantities};
  for (std::size_t a = 0; a < points.size(); ++a) {
    for (std::size_t b = 0; b <= a; ++b) {
      for (std::size_t idx = 0; idx < num_quantities; ++idx) {
        const double distance = points[a].position[idx] - points[b].position[idx];
        pairs.squares.push_back(distance * distance);
      }
      pairs.levels.push_back(shared_levels(points[a].path, points[b].path));
      pairs.constants.push_back(constants_covariance(points[a], points[b]));
    }
  }
  return pairs;
}

/// Minus the logarithm of the likelihood of the residuals, and of the scales as far as they wander from the start.
double misfit(const FieldPairs& pairs, const std::vector<double>& residuals, const FieldScales& scales,
              const FieldScales& start) {
  const std::size_t n = pairs.count;
  std::vector<double> shared;
  for (std::size_t levels = 0; levels <= scales.level_sigmas.size(); ++levels) {
    shared.push_back(shared_variance(scales, levels));
  }
  std::vector<double> inverse_squares;
  for (const double length : scales.lengths) inverse_squares.push_back(1.0 / (length * length));
  std::vector<double> matrix(n * n, 0.0);
  std::size_t pair = 0;
  for (std::size_t a = 0; a < n; ++a) {
    for (std::size_t b = 0; b <= a; ++b, ++pair) {
      double square = 0.0;
      for (std::size_t idx = 0; idx < pairs.num_quantities; ++idx) {
        square += pairs.squares[pair * pairs.num_quantities + idx] * inverse_squares[idx];
      }
      const double level_variance = shared[std::min(pairs.levels[pair], shared.size() - 1)];
      matrix[a * n + b] = level_variance * smooth_correlation(std::sqrt(square)) + pairs.constants[pair];
    }
    matrix[a * n + a] += scales.noise_sigma * scales.noise_sigma;
  }
  if (!factorise(matrix, n)) return std::numeric_limits<double>::infinity();
  std::vector<double> solved = residuals;
  solve_lower(matrix, n, solved);
  double result = 0.0;
  for (std::size_t row = 0; row < n; ++row) {
    result += 0.5 * solved[row] * solved[row] + std::log(matrix[row * n + row]);
  }
  const auto wander = [&result](double value, double from) {
    const double factor = std::log(value / from);
    result += 0.5 * factor * factor;
  };
  for (std::size_t idx = 0; idx < scales.lengths.size(); ++idx) wander(scales.lengths[idx], start.lengths[idx]);
  for (std::size_t idx = 0; idx < scales.level_sigmas.size(); ++idx) {
    wander(scales.level_sigmas[idx], start.level_sigmas[idx]);
  }
  wander(scales.noise_sigma, start.noise_sigma);
  return result;
}

/// One scale after the other, up or down by a factor while that helps; the factor shrinks.
FieldScales likeliest_scales(const std::vector<FieldPoint>& points, const std::vector<double>& residuals,
                             const FieldScales& start) {
  std::vector<FieldPoint> some_points;
  std::vector<double> some_residuals;
  const std::size_t stride = std::max<std::size_t>(1, (points.size() + kMaxPointsForScales - 1) / kMaxPointsForScales);
  for (std::size_t idx = 0; idx < points.size(); idx += stride) {
    some_points.push_back(points[idx]);
    some_residuals.push_back(residuals[idx]);
  }
  const FieldPairs pairs = make_pairs(some_points, start.lengths.size());
  FieldScales best = start;
  double best_misfit = misfit(pairs, some_residuals, best, start);
  for (const double factor : {2.0, 1.5, 1.25}) {
    std::vector<double*> all;
    for (double& length : best.lengths) all.push_back(&length);
    for (double& sigma : best.level_sigmas) all.push_back(&sigma);
    all.push_back(&best.noise_sigma);
    for (double* const scale : all) {
      for (const double step : {factor, 1.0 / factor}) {
        const double before = *scale;
        *scale = before * step;
        const double trial = misfit(pairs, some_residuals, best, start);
        if (trial < best_misfit) {
          best_misfit = trial;
          break;
        }
        *scale = before;
      }
    }
  }
  return best;
}

}  // namespace

ResidualField::ResidualField(std::vector<FieldPoint> points, std::vector<double> residuals, FieldScales scales)
    : points_(std::move(points)), residuals_(std::move(residuals)), scales_(std::move(scales)) {
  if (points_.empty()) return;
  scales_ = likeliest_scales(points_, residuals_, scales_);
  solve();
}

void ResidualField::solve() {
  const std::size_t n = points_.size();
  factor_.assign(n * n, 0.0);
  for (std::size_t a = 0; a < n; ++a) {
    for (std::size_t b = 0; b <= a; ++b) factor_[a * n + b] = covariance(scales_, points_[a], points_[b]);
    // A little more than the noise, so that equal points without noise can be factorised.
    factor_[a * n + a] += scales_.noise_sigma * scales_.noise_sigma + 1e-9;
  }
  weights_ = residuals_;
  if (!factorise(factor_, n)) {
    weights_.assign(n, 0.0);
    return;
  }
  solve_lower(factor_, n, weights_);
  solve_upper(factor_, n, weights_);
}

FieldValue ResidualField::at(const FieldPoint& point) const {
  const std::size_t n = points_.size();
  const double own = shared_variance(scales_, scales_.level_sigmas.size()) + constants_covariance(point, point);
  const double noise = scales_.noise_sigma * scales_.noise_sigma;
  std::vector<double> column(n);
  FieldValue value;
  for (std::size_t idx = 0; idx < n; ++idx) {
    column[idx] = covariance(scales_, points_[idx], point);
    value.mean += column[idx] * weights_[idx];
  }
  if (n > 0) solve_lower(factor_, n, column);
  double explained = 0.0;
  for (const double part : column) explained += part * part;
  value.sigma = std::sqrt(std::max(own - explained, 0.0) + noise);
  return value;
}

}  // namespace epistle
