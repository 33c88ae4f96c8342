#include "dispatch/host/engine/worker_pool.hpp"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

namespace epistle::host {
namespace {

class WorkerPoolTest : public ::testing::TestWithParam<int> {};

TEST_P(WorkerPoolTest, EveryItemExactlyOnce) {
  WorkerPool pool(GetParam());
  EXPECT_EQ(pool.num_workers(), GetParam());
  for (std::int64_t num_items = 0; num_items < 200; ++num_items) {
    std::vector<int> visits(static_cast<std::size_t>(num_items) + 1);
    pool.parallel_for(num_items, [&](std::int64_t begin, std::int64_t end) {
      ASSERT_LE(begin, end);
      for (std::int64_t item = begin; item < end; ++item) ++visits[static_cast<std::size_t>(item)];
    });
    // Plain ints: what the workers wrote must be visible here, and no two may have shared an item.
    std::vector<int> expected(visits.size(), 1);
    expected.back() = 0;
    ASSERT_EQ(visits, expected) << num_items << " items";
  }
}

TEST_P(WorkerPoolTest, RangesDependOnlyOnTheCounts) {
  const auto ranges_of = [](int num_workers) {
    WorkerPool pool(num_workers);
    std::mutex mutex;
    std::vector<std::pair<std::int64_t, std::int64_t>> ranges;
    pool.parallel_for(1001, [&](std::int64_t begin, std::int64_t end) {
      const std::lock_guard lock(mutex);
      ranges.emplace_back(begin, end);
    });
    std::sort(ranges.begin(), ranges.end());
    return ranges;
  };
  const auto ranges = ranges_of(GetParam());
  EXPECT_EQ(static_cast<int>(ranges.size()), GetParam());
  EXPECT_EQ(ranges, ranges_of(GetParam()));
  std::int64_t expected_begin = 0;
  for (const auto& [begin, end] : ranges) {
    EXPECT_EQ(begin, expected_begin);
    EXPECT_NEAR(static_cast<double>(end - begin), 1001.0 / GetParam(), 1.0);
    expected_begin = end;
  }
  EXPECT_EQ(expected_begin, 1001);
}

TEST_P(WorkerPoolTest, ManyJobsInARow) {
  WorkerPool pool(GetParam());
  std::vector<std::int64_t> values(64);
  constexpr int kNumJobs = 3000;
  for (int job = 0; job < kNumJobs; ++job) {
    pool.parallel_for(64, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t item = begin; item < end; ++item) values[static_cast<std::size_t>(item)] += item;
    });
  }
  EXPECT_EQ(std::accumulate(values.begin(), values.end(), std::int64_t{0}), std::int64_t{kNumJobs} * 63 * 64 / 2);
}

TEST_P(WorkerPoolTest, UsesItsThreads) {
  WorkerPool pool(GetParam());
  std::atomic<int> num_calls{0};
  pool.parallel_for(100, [&](std::int64_t, std::int64_t) {
    num_calls.fetch_add(1);
    // Nobody comes back before all have begun: they must be on threads of their own.
    while (num_calls.load() < GetParam()) std::this_thread::yield();
  });
  EXPECT_EQ(num_calls.load(), GetParam());
}

TEST(WorkerPoolLifetime, EndsWithoutAJob) {
  for (int num_workers = 1; num_workers <= 8; ++num_workers) WorkerPool pool(num_workers);
}

INSTANTIATE_TEST_SUITE_P(All, WorkerPoolTest, ::testing::Range(1, 9));

}  // namespace
}  // namespace epistle::host
