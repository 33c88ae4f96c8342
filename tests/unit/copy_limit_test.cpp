#include "measure/copy_limit.hpp"

#include <cmath>
#include <mutex>
#include <vector>

#include <gtest/gtest.h>

namespace epistle {
namespace {

std::vector<CopyLimit> measure(int num_ranks, const std::vector<std::int64_t>& working_set_bytes, int num_workers) {
  std::vector<CopyLimit> limits(static_cast<std::size_t>(num_ranks));
  run_thread_ranks(num_ranks, [&](Group& group) {
    const auto rank = static_cast<std::size_t>(group.rank());
    limits[rank] = measure_copy_limit(
        group, {.working_set_bytes = working_set_bytes[rank], .num_workers = num_workers, .num_iterations = 3});
  });
  return limits;
}

TEST(CopyLimit, IsTheFasterOfTwoPositiveRates) {
  for (const CopyLimit& limit : measure(2, {1 << 20, 1 << 20}, 2)) {
    EXPECT_GT(limit.memcpy_bytes_per_s, 0.0);
    EXPECT_GT(limit.streaming_bytes_per_s, 0.0);
    EXPECT_TRUE(std::isfinite(limit.bytes_per_s));
    EXPECT_EQ(limit.bytes_per_s, std::max(limit.memcpy_bytes_per_s, limit.streaming_bytes_per_s));
    EXPECT_EQ(limit.method, limit.bytes_per_s == limit.streaming_bytes_per_s ? "streaming" : "memcpy");
    EXPECT_EQ(limit.working_set_bytes, 1 << 20);
  }
}

TEST(CopyLimit, IsTheSameOnAllRanksAndTakesTheLargestWorkingSet) {
  const std::vector<CopyLimit> limits = measure(3, {0, 1 << 18, 100}, 1);
  for (const CopyLimit& limit : limits) {
    EXPECT_EQ(limit.bytes_per_s, limits.front().bytes_per_s);
    EXPECT_EQ(limit.working_set_bytes, 1 << 18);
  }
}

TEST(CopyLimit, WorksWithNothingToCopy) {
  const CopyLimit limit = measure(1, {0}, 1).front();
  EXPECT_GT(limit.working_set_bytes, 0);
  EXPECT_TRUE(std::isfinite(limit.bytes_per_s));
}

TEST(CopyLimit, TellsHowFarItIs) {
  std::vector<std::int64_t> steps;
  std::int64_t total = 0;
  run_thread_ranks(1, [&](Group& group) {
    static_cast<void>(measure_copy_limit(
        group,
        {.working_set_bytes = 8192, .num_iterations = 2, .on_iteration = [&](std::int64_t done, std::int64_t all) {
           steps.push_back(done);
           total = all;
         }}));
  });
  ASSERT_FALSE(steps.empty());
  EXPECT_EQ(steps.front(), 1);
  EXPECT_EQ(steps.back(), total);
  EXPECT_EQ(steps.size(), static_cast<std::size_t>(total));
}

}  // namespace
}  // namespace epistle
