// Fits of a few positive constants to measured times: relative errors, a prior for every constant, outliers held at
// arm's length. What the data do not say stays at the prior, and the result tells which constants these are.
#pragma once

#include <functional>
#include <span>
#include <vector>

namespace epistle {

/// A constant is log-normal: exp(log_mean) within a factor of exp(log_sigma).
struct LogPrior {
  double log_mean = 0.0;
  double log_sigma = 1.0;
};

struct FitResult {
  std::vector<double> log_values;
  std::vector<double> log_sigmas;  ///< what is left of the uncertainty of the priors
};

/// Predicted time of an observation for constants given by their logarithms.
using PredictLogUs = std::function<double(std::size_t observation, std::span<const double> log_values)>;

/// Maximises the posterior of `log_us` under Huber's loss with errors of `log_noise`. `weights` says how many
/// independent observations each counts for; empty = one. Deterministic.
[[nodiscard]] FitResult fit_constants(const PredictLogUs& predict, std::span<const double> log_us,
                                      std::span<const LogPrior> priors, double log_noise,
                                      std::span<const double> weights = {});

/// Solves A x = b for a symmetric positive definite A of n rows, in place: A becomes its lower Cholesky factor.
/// False where A is not positive definite.
[[nodiscard]] bool factorise(std::span<double> matrix, std::size_t n) noexcept;
void solve_lower(std::span<const double> factor, std::size_t n, std::span<double> vector) noexcept;
void solve_upper(std::span<const double> factor, std::size_t n, std::span<double> vector) noexcept;

}  // namespace epistle
