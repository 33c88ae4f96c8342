#include "measure/statistics.hpp"

#include <numeric>
#include <vector>

#include <gtest/gtest.h>

namespace epistle {
namespace {

std::vector<double> up_to(int last) {
  std::vector<double> samples(static_cast<std::size_t>(last));
  std::iota(samples.begin(), samples.end(), 1.0);
  return samples;
}

TEST(Statistics, NoSamplesGiveZeros) {
  const Summary summary = summarize({});
  EXPECT_EQ(summary.min, 0.0);
  EXPECT_EQ(summary.median, 0.0);
  EXPECT_EQ(summary.p99, 0.0);
  EXPECT_EQ(summary.max, 0.0);
}

TEST(Statistics, OneSampleIsEverything) {
  const Summary summary = summarize({4.5});
  EXPECT_EQ(summary.min, 4.5);
  EXPECT_EQ(summary.median, 4.5);
  EXPECT_EQ(summary.p99, 4.5);
  EXPECT_EQ(summary.max, 4.5);
}

TEST(Statistics, OrderDoesNotMatter) {
  const Summary summary = summarize({5.0, 1.0, 4.0, 2.0, 3.0});
  EXPECT_EQ(summary.min, 1.0);
  EXPECT_EQ(summary.median, 3.0);
  EXPECT_EQ(summary.max, 5.0);
}

TEST(Statistics, MedianOfAnEvenNumberLiesBetween) { EXPECT_EQ(summarize({4.0, 1.0, 2.0, 100.0}).median, 3.0); }

TEST(Statistics, P99IsTheNearestRank) {
  EXPECT_EQ(summarize(up_to(30)).p99, 30.0);  // fewer than 100: the largest
  EXPECT_EQ(summarize(up_to(100)).p99, 99.0);
  EXPECT_EQ(summarize(up_to(101)).p99, 100.0);
  EXPECT_EQ(summarize(up_to(1000)).p99, 990.0);
}

TEST(Statistics, P10AndP90AreNearestRanks) {
  EXPECT_EQ(summarize({4.5}).p10, 4.5);
  EXPECT_EQ(summarize({4.5}).p90, 4.5);
  EXPECT_EQ(summarize(up_to(9)).p10, 1.0);
  EXPECT_EQ(summarize(up_to(9)).p90, 9.0);
  EXPECT_EQ(summarize(up_to(30)).p10, 3.0);
  EXPECT_EQ(summarize(up_to(30)).p90, 27.0);
}

}  // namespace
}  // namespace epistle
