#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numbers>

#include <gtest/gtest.h>

#include "routing/popularity.hpp"
#include "routing/reproducible_math.hpp"

namespace epistle {
namespace {

TEST(ReproducibleMath, LogMatchesTheLibrary) {
  EXPECT_EQ(reproducible_log(1.0), 0.0);
  EXPECT_DOUBLE_EQ(reproducible_log(2.0), std::numbers::ln2);
  for (double x = 1e-300; x < 1e300; x *= 1.37) {
    EXPECT_NEAR(reproducible_log(x), std::log(x), 1e-15 * std::max(1.0, std::fabs(std::log(x)))) << x;
  }
  for (double x = 0.9; x < 1.1; x += 0.00037) EXPECT_NEAR(reproducible_log(x), std::log(x), 4e-16) << x;
}

TEST(ReproducibleMath, ExpMatchesTheLibrary) {
  EXPECT_EQ(reproducible_exp_of_nonpositive(0.0), 1.0);
  EXPECT_EQ(reproducible_exp_of_nonpositive(-701.0), 0.0);
  EXPECT_EQ(reproducible_exp_of_nonpositive(-1e308), 0.0);
  EXPECT_EQ(reproducible_exp_of_nonpositive(-std::numeric_limits<double>::infinity()), 0.0);
  for (double x = 0.0; x > -699.0; x -= 0.173) {
    EXPECT_NEAR(reproducible_exp_of_nonpositive(x) / std::exp(x), 1.0, 1e-14) << x;
  }
}

TEST(ReproducibleMath, NormalHasMeanVarianceAndTails) {
  constexpr int kDraws = 100000;
  PhiloxStream random(5, {.stream = RandomStream::kPopularity});
  double sum = 0.0;
  double sum_of_squares = 0.0;
  int beyond_two = 0;
  for (int draw = 0; draw < kDraws; ++draw) {
    const double z = draw_standard_normal(random);
    sum += z;
    sum_of_squares += z * z;
    beyond_two += std::fabs(z) > 2.0 ? 1 : 0;
  }
  EXPECT_NEAR(sum / kDraws, 0.0, 0.016);
  EXPECT_NEAR(sum_of_squares / kDraws, 1.0, 0.022);
  EXPECT_NEAR(beyond_two / static_cast<double>(kDraws), 0.0455, 0.0033);
}

TEST(Popularity, ZipfFallsByPlace) {
  auto popularity = zipf_popularity(64, 1.0, 1);
  ASSERT_EQ(popularity.size(), 64U);
  std::sort(popularity.rbegin(), popularity.rend());
  for (std::size_t place = 1; place <= popularity.size(); ++place) {
    EXPECT_NEAR(static_cast<double>(popularity[place - 1]),
                static_cast<double>(kTopPopularity) / static_cast<double>(place), 0.51)
        << place;
  }
}

TEST(Popularity, SeedMovesTheHotExpert) {
  EXPECT_EQ(zipf_popularity(64, 1.0, 1), zipf_popularity(64, 1.0, 1));
  EXPECT_NE(zipf_popularity(64, 1.0, 1), zipf_popularity(64, 1.0, 2));
  EXPECT_NE(lognormal_popularity(64, 0.6, 1), lognormal_popularity(64, 0.6, 2));
}

TEST(Popularity, NoExpertIsImpossible) {
  for (const double extreme : {50.0, 1e6, 1e300}) {
    for (const std::uint64_t share : zipf_popularity(256, extreme, 1)) EXPECT_GE(share, 1U);
    for (const std::uint64_t share : lognormal_popularity(256, extreme, 1)) EXPECT_GE(share, 1U);
  }
  for (const std::uint64_t share : zipf_popularity(8, 0.0, 1)) EXPECT_EQ(share, kTopPopularity);
  for (const std::uint64_t share : lognormal_popularity(8, 0.0, 1)) EXPECT_EQ(share, kTopPopularity);
}

TEST(Popularity, LognormalHasTheSpreadAskedFor) {
  const auto popularity = lognormal_popularity(4096, 0.6, 11);
  double sum = 0.0;
  double sum_of_squares = 0.0;
  for (const std::uint64_t share : popularity) {
    const double log_share = std::log(static_cast<double>(share));
    sum += log_share;
    sum_of_squares += log_share * log_share;
  }
  const double mean = sum / 4096;
  EXPECT_NEAR(std::sqrt(sum_of_squares / 4096 - mean * mean), 0.6, 0.035);
}

TEST(Popularity, DrawsInProportion) {
  PopularitySampler sampler({6, 3, 1});
  std::array<int, 3> first{};
  constexpr int kDraws = 20000;
  int second_is_one_after_zero = 0;
  for (int draw = 0; draw < kDraws; ++draw) {
    PhiloxStream random(1, {.token = static_cast<std::uint32_t>(draw)});
    std::array<std::int32_t, 2> experts{};
    sampler.draw_distinct(random, experts);
    ASSERT_NE(experts[0], experts[1]);
    ++first.at(static_cast<std::size_t>(experts[0]));
    second_is_one_after_zero += experts[0] == 0 && experts[1] == 1 ? 1 : 0;
  }
  EXPECT_NEAR(first[0] / static_cast<double>(kDraws), 0.6, 0.018);
  EXPECT_NEAR(first[1] / static_cast<double>(kDraws), 0.3, 0.018);
  EXPECT_NEAR(second_is_one_after_zero / static_cast<double>(kDraws), 0.6 * 0.75, 0.018);
}

}  // namespace
}  // namespace epistle
