#include "measure/copy_limit.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include <gtest/gtest.h>

namespace epistle {
namespace {

/// What every rank is told after `num_samples`.
std::vector<CopyLimit> measure(const std::vector<std::int64_t>& working_set_bytes, int num_workers, int num_samples) {
  std::vector<CopyLimit> limits(working_set_bytes.size());
  run_thread_ranks(static_cast<int>(limits.size()), [&](Group& group) {
    const auto rank = static_cast<std::size_t>(group.rank());
    CopyProbe probe(group, {.working_set_bytes = working_set_bytes[rank], .num_workers = num_workers});
    for (int sample = 0; sample < num_samples; ++sample) probe.sample();
    limits[rank] = probe.limit();
  });
  return limits;
}

TEST(CopyLimit, IsTheFasterOfTwoPositiveRates) {
  for (const CopyLimit& limit : measure({1 << 20, 1 << 20}, 2, 3)) {
    EXPECT_GT(limit.memcpy_bytes_per_s, 0.0);
    EXPECT_GT(limit.streaming_bytes_per_s, 0.0);
    EXPECT_TRUE(std::isfinite(limit.bytes_per_s));
    EXPECT_EQ(limit.bytes_per_s, std::max(limit.memcpy_bytes_per_s, limit.streaming_bytes_per_s));
    EXPECT_EQ(limit.method, limit.streaming_bytes_per_s > limit.memcpy_bytes_per_s ? "streaming" : "memcpy");
    EXPECT_EQ(limit.working_set_bytes, 1 << 20);
  }
}

TEST(CopyLimit, IsTheSameOnAllRanksAndTakesTheLargestWorkingSet) {
  const std::vector<CopyLimit> limits = measure({0, 1 << 18, 100}, 1, 2);
  for (const CopyLimit& limit : limits) {
    EXPECT_EQ(limit.bytes_per_s, limits.front().bytes_per_s);
    EXPECT_EQ(limit.working_set_bytes, 1 << 18);
  }
}

TEST(CopyLimit, WorksWithNothingToCopy) {
  const CopyLimit limit = measure({0}, 1, 1).front();
  EXPECT_GT(limit.working_set_bytes, 0);
  EXPECT_TRUE(std::isfinite(limit.bytes_per_s));
  EXPECT_GT(limit.bytes_per_s, 0.0);
}

}  // namespace
}  // namespace epistle
