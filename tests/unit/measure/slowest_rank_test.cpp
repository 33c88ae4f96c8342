#include "measure/slowest_rank.hpp"

#include <vector>

#include <gtest/gtest.h>

#include "measure/statistics.hpp"

namespace epistle {
namespace {

using Samples = std::vector<double>;

TEST(SlowestRank, EverySampleIsThatOfTheRankThatTookLongest) {
  const std::vector<Samples> own = {{1.0, 9.0, 3.0, 4.0}, {2.0, 8.0, 3.0, 1.0}, {1.5, 7.0, 3.5, 2.0}};
  std::vector<Samples> reduced = own;
  run_thread_ranks(3, [&](Group& group) {
    SlowestRank slowest(group, 4);
    slowest.reduce(reduced[static_cast<std::size_t>(group.rank())]);
  });
  for (const Samples& samples : reduced) EXPECT_EQ(samples, (Samples{2.0, 9.0, 3.5, 4.0}));
}

TEST(SlowestRank, FewerSamplesThanThereIsRoomFor) {
  std::vector<Samples> reduced = {{1.0, 5.0}, {4.0, 2.0}};
  std::vector<double> single(2);
  run_thread_ranks(2, [&](Group& group) {
    const auto rank = static_cast<std::size_t>(group.rank());
    SlowestRank slowest(group, 64);
    slowest.reduce(reduced[rank]);
    single[rank] = slowest.reduce(10.0 * group.rank());
  });
  for (const Samples& samples : reduced) EXPECT_EQ(samples, (Samples{4.0, 5.0}));
  EXPECT_EQ(single, (std::vector<double>{10.0, 10.0}));
}

TEST(SlowestRank, OneRankKeepsItsSamples) {
  Samples samples = {3.0, 1.0};
  run_thread_ranks(1, [&](Group& group) { SlowestRank(group, 2).reduce(samples); });
  EXPECT_EQ(samples, (Samples{3.0, 1.0}));
}

/// Ranks that are slow in turn: no rank's own percentiles show what the group waited for.
TEST(SlowestRank, PercentilesAreOfTheGroupNotOfARank) {
  constexpr int kNumSamples = 100;
  std::vector<Samples> samples(2, Samples(kNumSamples, 10.0));
  for (int idx = 0; idx < kNumSamples; ++idx) {
    samples[static_cast<std::size_t>(idx % 2)][static_cast<std::size_t>(idx)] = 20.0;
  }
  EXPECT_EQ(summarize(samples[0]).median, 15.0);
  run_thread_ranks(2, [&](Group& group) {
    SlowestRank(group, kNumSamples).reduce(samples[static_cast<std::size_t>(group.rank())]);
  });
  EXPECT_EQ(summarize(samples[0]).min, 20.0);
  EXPECT_EQ(summarize(samples[1]).p99, 20.0);
}

}  // namespace
}  // namespace epistle
