#include "routing/reproducible_math.hpp"

#include <cmath>
#include <cstdint>
#include <numbers>

namespace epistle {
namespace {

// ln 2 in two parts: the high one has its low 24 bits clear, so that an exponent times it is exact.
constexpr double kLn2High = 0x1.62e42fep-1;
constexpr double kLn2Low = 0x1.f473de6af278fp-30;

// With |s| <= (sqrt(2)-1)/(sqrt(2)+1) = 0.172 the first neglected term, s^25/25, is below 3e-20 of the sum.
constexpr int kNumLogTerms = 12;

// With |r| <= ln(2)/2 the first neglected term, r^18/18!, is below 1e-23.
constexpr int kNumExpTerms = 18;

// Below this the result is a denormal or close to it, and no popularity is that small.
constexpr double kSmallestExponent = -700.0;

constexpr int kMantissaBits = 53;  // of a double

/// Uniform in [-1, 1): a multiple of 2^-52, exactly represented.
double draw_signed_unit(PhiloxStream& random) noexcept {
  const auto draw = static_cast<double>(random.next_u64() >> (2 * kBitsPerWord - kMantissaBits));
  return std::ldexp(draw, 1 - kMantissaBits) - 1.0;
}

}  // namespace

double reproducible_log(double x) noexcept {
  int exponent = 0;
  double mantissa = std::frexp(x, &exponent);  // [0.5, 1)
  if (mantissa < std::numbers::sqrt2 / 2.0) {
    mantissa *= 2.0;
    --exponent;
  }
  // ln m = 2 artanh s = 2 (s + s^3/3 + s^5/5 + ...)
  const double s = (mantissa - 1.0) / (mantissa + 1.0);
  const double s_squared = s * s;
  double sum = 0.0;
  for (int term = kNumLogTerms - 1; term >= 0; --term) sum = sum * s_squared + 1.0 / static_cast<double>(2 * term + 1);
  const double fraction = 2.0 * s * sum;
  return exponent * kLn2High + (exponent * kLn2Low + fraction);
}

double reproducible_exp_of_nonpositive(double x) noexcept {
  if (x < kSmallestExponent) return 0.0;
  const double doublings = std::floor(x * std::numbers::log2e + 0.5);
  const double r = (x - doublings * kLn2High) - doublings * kLn2Low;
  double sum = 1.0;
  for (int term = kNumExpTerms - 1; term >= 1; --term) sum = 1.0 + r / static_cast<double>(term) * sum;
  return std::ldexp(sum, static_cast<int>(doublings));
}

double draw_standard_normal(PhiloxStream& random) noexcept {
  for (;;) {
    const double u = draw_signed_unit(random);
    const double v = draw_signed_unit(random);
    const double square = u * u + v * v;
    if (square > 0.0 && square < 1.0) return u * std::sqrt(-2.0 * reproducible_log(square) / square);
  }
}

}  // namespace epistle
