// A load window that is fed by the counters of dispatchers.
#include "balance/counter_feed.hpp"

#include <vector>

#include <gtest/gtest.h>

#include "epistle/error.hpp"

namespace epistle::balance {
namespace {

TEST(CounterFeed, AddsWhatCameSinceTheLastLook) {
  LoadWindow window({.num_layers = 2, .num_experts = 3});
  CounterFeed feed(window, 1, WorkPhase::kDecode);
  feed.update(std::vector<std::int64_t>{4, 0, 1});
  feed.update(std::vector<std::int64_t>{4, 2, 7});
  const LoadSnapshot seen = window.snapshot(WorkPhase::kDecode);
  EXPECT_EQ(std::vector<std::int64_t>(seen.tokens_of(1).begin(), seen.tokens_of(1).end()),
            (std::vector<std::int64_t>{4, 2, 7}));
  EXPECT_EQ(seen.tokens_of(0)[0], 0);
  EXPECT_EQ(window.snapshot(WorkPhase::kPrefill).tokens_of(1)[0], 0);
}

TEST(CounterFeed, BeginsWhereCountersStand) {
  LoadWindow window({.num_experts = 2});
  CounterFeed feed(window, 0, WorkPhase::kPrefill, std::vector<std::int64_t>{100, 50});
  feed.update(std::vector<std::int64_t>{101, 50});
  EXPECT_EQ(window.snapshot(WorkPhase::kPrefill).tokens_of(0)[0], 1);
  EXPECT_EQ(window.snapshot(WorkPhase::kPrefill).tokens_of(0)[1], 0);
}

TEST(CounterFeed, RefusesCountsOfAnotherDispatcher) {
  LoadWindow window({.num_experts = 2});
  CounterFeed feed(window, 0, WorkPhase::kPrefill);
  feed.update(std::vector<std::int64_t>{5, 5});
  EXPECT_THROW(feed.update(std::vector<std::int64_t>{4, 6}), Error);
  EXPECT_THROW(feed.update(std::vector<std::int64_t>{6, 6, 6}), Error);
  EXPECT_EQ(window.snapshot(WorkPhase::kPrefill).tokens_of(0)[0], 5);
}

}  // namespace
}  // namespace epistle::balance
