#include "cost/fit/least_squares.hpp"

#include <algorithm>
#include <cmath>

namespace epistle {

bool factorise(std::span<double> matrix, std::size_t n) noexcept {
  for (std::size_t row = 0; row < n; ++row) {
    double* const row_begin = matrix.data() + row * n;
    for (std::size_t column = 0; column <= row; ++column) {
      const double* const other = matrix.data() + column * n;
      // Four sums at a time: one alone waits for every addition.
      double sums[4] = {0, 0, 0, 0};
      std::size_t idx = 0;
      for (; idx + 4 <= column; idx += 4) {
        for (std::size_t lane = 0; lane < 4; ++lane) sums[lane] += row_begin[idx + lane] * other[idx + lane];
      }
      for (; idx < column; ++idx) sums[0] += row_begin[idx] * other[idx];
      const double rest = row_begin[column] - (sums[0] + sums[1] + sums[2] + sums[3]);
      if (column < row) {
        row_begin[column] = rest / other[column];
      } else {
        if (!(rest > 0.0)) return false;
        row_begin[column] = std::sqrt(rest);
      }
    }
  }
  return true;
}

void solve_lower(std::span<const double> factor, std::size_t n, std::span<double> vector) noexcept {
  for (std::size_t row = 0; row < n; ++row) {
    double rest = vector[row];
    for (std::size_t column = 0; column < row; ++column) rest -= factor[row * n + column] * vector[column];
    vector[row] = rest / factor[row * n + row];
  }
}

void solve_upper(std::span<const double> factor, std::size_t n, std::span<double> vector) noexcept {
  for (std::size_t row = n; row-- > 0;) {
    vector[row] /= factor[row * n + row];
    for (std::size_t column = 0; column < row; ++column) vector[column] -= factor[row * n + column] * vector[row];
  }
}

namespace {

constexpr double kHuberSigmas = 2.0;  // errors beyond count linearly
constexpr int kMaxSteps = 60;
constexpr double kDifference = 1e-4;  // of a logarithm, for slopes
constexpr double kConverged = 1e-7;   // relative gain of a step

/// The state of one fit: objective, weighted normal equations, damping.
class Fitter {
 public:
  Fitter(const PredictLogUs& predict, std::span<const double> log_us, std::span<const LogPrior> priors,
         double log_noise, std::span<const double> weights)
      : predict_(predict), log_us_(log_us), priors_(priors), weights_(weights), noise_(log_noise) {}

  FitResult run() {
    std::vector<double> values;
    for (const LogPrior& prior : priors_) values.push_back(prior.log_mean);
    double loss = loss_at(values);
    double damping = 1e-2;
    for (int step = 0; step < kMaxSteps; ++step) {
      linearise(values);
      bool improved = false;
      double gain = 0.0;
      for (int attempt = 0; attempt < 8 && !improved; ++attempt) {
        const std::vector<double> next = propose(values, damping);
        const double next_loss = loss_at(next);
        improved = next_loss < loss;
        if (improved) {
          gain = (loss - next_loss) / std::max(loss, 1e-300);
          values = next;
          loss = next_loss;
          damping = std::max(damping / 4, 1e-9);
        } else {
          damping *= 5;
        }
      }
      if (!improved || gain < kConverged) break;
    }
    return {.log_values = values, .log_sigmas = remaining_sigmas(values)};
  }

 private:
  [[nodiscard]] double weight_of(std::size_t row) const { return weights_.empty() ? 1.0 : weights_[row]; }

  [[nodiscard]] double loss_at(const std::vector<double>& values) const {
    double loss = 0.0;
    for (std::size_t row = 0; row < log_us_.size(); ++row) {
      const double error = std::fabs(log_us_[row] - predict_(row, values)) / noise_;
      loss += weight_of(row) * (error < kHuberSigmas ? error * error : kHuberSigmas * (2 * error - kHuberSigmas));
    }
    for (std::size_t idx = 0; idx < priors_.size(); ++idx) {
      const double error = (values[idx] - priors_[idx].log_mean) / priors_[idx].log_sigma;
      loss += error * error;
    }
    return loss;
  }

  void linearise(const std::vector<double>& values) {
    const std::size_t n = priors_.size();
    normal_.assign(n * n, 0.0);
    gradient_.assign(n, 0.0);
    std::vector<double> moved = values;
    std::vector<double> slopes(n);
    for (std::size_t row = 0; row < log_us_.size(); ++row) {
      const double base = predict_(row, values);
      for (std::size_t idx = 0; idx < n; ++idx) {
        moved[idx] = values[idx] + kDifference;
        slopes[idx] = (predict_(row, moved) - base) / kDifference;
        moved[idx] = values[idx];
      }
      const double error = (log_us_[row] - base) / noise_;
      const double weight =
          weight_of(row) * std::min(1.0, kHuberSigmas / std::max(std::fabs(error), 1e-300)) / (noise_ * noise_);
      for (std::size_t a = 0; a < n; ++a) {
        gradient_[a] += weight * slopes[a] * (log_us_[row] - base);
        for (std::size_t b = 0; b <= a; ++b) normal_[a * n + b] += weight * slopes[a] * slopes[b];
      }
    }
    for (std::size_t idx = 0; idx < n; ++idx) {
      const double precision = 1.0 / (priors_[idx].log_sigma * priors_[idx].log_sigma);
      normal_[idx * n + idx] += precision;
      gradient_[idx] += precision * (priors_[idx].log_mean - values[idx]);
    }
  }

  [[nodiscard]] std::vector<double> propose(const std::vector<double>& values, double damping) const {
    const std::size_t n = priors_.size();
    std::vector<double> matrix = normal_;
    for (std::size_t idx = 0; idx < n; ++idx) matrix[idx * n + idx] *= 1.0 + damping;
    std::vector<double> step = gradient_;
    if (!factorise(matrix, n)) return values;
    solve_lower(matrix, n, step);
    solve_upper(matrix, n, step);
    std::vector<double> next = values;
    constexpr double kMaxStep = 1.5;  // of a logarithm
    for (std::size_t idx = 0; idx < n; ++idx) next[idx] += std::clamp(step[idx], -kMaxStep, kMaxStep);
    return next;
  }

  [[nodiscard]] std::vector<double> remaining_sigmas(const std::vector<double>& values) {
    linearise(values);
    const std::size_t n = priors_.size();
    std::vector<double> sigmas;
    for (const LogPrior& prior : priors_) sigmas.push_back(prior.log_sigma);
    if (!factorise(normal_, n)) return sigmas;
    for (std::size_t idx = 0; idx < n; ++idx) {
      std::vector<double> unit(n, 0.0);
      unit[idx] = 1.0;
      solve_lower(normal_, n, unit);
      double variance = 0.0;
      for (const double part : unit) variance += part * part;
      sigmas[idx] = std::sqrt(variance);
    }
    return sigmas;
  }

  const PredictLogUs& predict_;
  std::span<const double> log_us_;
  std::span<const LogPrior> priors_;
  std::span<const double> weights_;
  double noise_;
  std::vector<double> normal_;  // lower triangle
  std::vector<double> gradient_;
};

}  // namespace

FitResult fit_constants(const PredictLogUs& predict, std::span<const double> log_us, std::span<const LogPrior> priors,
                        double log_noise, std::span<const double> weights) {
  return Fitter(predict, log_us, priors, log_noise, weights).run();
}

}  // namespace epistle
