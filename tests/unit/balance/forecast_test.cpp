#include "balance/forecast.hpp"

#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include "unit/balance/loads_for_tests.hpp"

namespace epistle::balance {
namespace {

/// Counts of 256 tokens with 4 experts each, about `loads`, which drift from window to window.
std::vector<std::vector<double>> windows_of(double drift, std::uint64_t seed) {
  PhiloxStream stream = test::numbers(seed);
  std::vector<double> loads = test::lognormal_loads(seed, 32, 0.6);
  std::vector<std::vector<double>> windows;
  for (int window = 0; window < 24; ++window) {
    double sum = 0.0;
    for (const double load : loads) sum += load;
    std::vector<double>& counts = windows.emplace_back();
    for (double& load : loads) {
      const double mean = 1024.0 * load / sum;
      counts.push_back(std::max(0.0, std::round(mean + std::sqrt(mean) * test::normal(stream))));
      load *= std::exp(drift * test::normal(stream));
    }
  }
  return windows;
}

TEST(Forecast, LoadsThatStayKeepTheirPastAndThoseThatDriftForgetIt) {
  int num_forgetful = 0;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    const double steady = choose_half_life(windows_of(0.0, seed), 4);
    EXPECT_TRUE(steady == 0.0 || steady >= 8.0) << steady;
    const double drifting = choose_half_life(windows_of(0.5, seed), 4);
    if (drifting > 0.0 && drifting <= 4.0) ++num_forgetful;
  }
  EXPECT_GE(num_forgetful, 18);
}

TEST(Forecast, OfFewWindowsOrNoLoadNothingIsTold) {
  EXPECT_EQ(choose_half_life({}, 4), 0.0);
  EXPECT_EQ(choose_half_life({{1.0, 2.0}, {2.0, 1.0}}, 4), 0.0);
  EXPECT_EQ(choose_half_life(std::vector<std::vector<double>>(10, {0.0, 0.0}), 4), 0.0);
  EXPECT_EQ(choose_half_life(std::vector<std::vector<double>>(10, {1.0, 0.0}), 4), 0.0);
}

}  // namespace
}  // namespace epistle::balance
