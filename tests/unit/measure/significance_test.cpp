#include "measure/significance.hpp"

#include <vector>

#include <gtest/gtest.h>

#include "routing/philox.hpp"

namespace epistle {
namespace {

TEST(Significance, IntervalsAreThoseOfTheSignTest) {
  // With 10 pairs the sign test of 95% leaves out one at each end, with 6 none: tables of the binomial distribution.
  const std::vector<double> zero(10, 0.0);
  const std::vector<double> b = {5, 1, 2, 3, 4, 6, 7, 8, 9, 10};
  const auto difference = paired_difference(zero, b);
  ASSERT_TRUE(difference.has_value());
  EXPECT_EQ(difference->estimate, 5.5);
  EXPECT_EQ(difference->low, 2.0);
  EXPECT_EQ(difference->high, 9.0);
  const auto six = paired_difference(std::vector<double>(6, 0.0), std::vector<double>{1, 2, 3, 4, 5, 6});
  ASSERT_TRUE(six.has_value());
  EXPECT_EQ(six->low, 1.0);
  EXPECT_EQ(six->high, 6.0);
  EXPECT_FALSE(paired_difference(std::vector<double>(5, 0.0), std::vector<double>(5, 1.0)).has_value());
}

TEST(Significance, SaysWhatTheIntervalShows) {
  EXPECT_EQ(verdict(std::nullopt), "too few rounds");
  EXPECT_EQ(verdict(Difference{.estimate = -2, .low = -3, .high = -1}), "faster");
  EXPECT_EQ(verdict(Difference{.estimate = 2, .low = 1, .high = 3}), "slower");
  EXPECT_EQ(verdict(Difference{.estimate = 1, .low = -1, .high = 3}), "no difference shown");
}

/// The share of trials in which the interval holds the true difference.
template <typename Interval>
double coverage(std::size_t num_samples, const Interval& interval) {
  constexpr int kTrials = 400;
  constexpr double kTrueDifference = 0.3;
  int num_held = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    PhiloxStream random(static_cast<std::uint64_t>(trial), {.stream = RandomStream::kTokenCounts, .rank = 0});
    const auto uniform = [&] { return static_cast<double>(random.below(1'000'000)) / 1e6; };
    std::vector<double> a;
    std::vector<double> b;
    for (std::size_t idx = 0; idx < num_samples; ++idx) {
      a.push_back(uniform());
      b.push_back(uniform() + kTrueDifference);
    }
    const auto difference = interval(a, b);
    if (difference && difference->low <= kTrueDifference && kTrueDifference <= difference->high) ++num_held;
  }
  return static_cast<double>(num_held) / kTrials;
}

TEST(Significance, IntervalsHoldTheTrueDifferenceAsOftenAsTheySay) {
  constexpr double kLeast = 0.92;  // of 400 trials at 95%, three deviations below
  for (const std::size_t num_samples : {8U, 50U, 120U}) {
    EXPECT_GE(coverage(num_samples, paired_difference), kLeast) << num_samples;
  }
  EXPECT_GE(coverage(20, unpaired_difference), kLeast);
}

}  // namespace
}  // namespace epistle
