// set_mask beside other calls: who waits for whom, and what all are told.
#include <chrono>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "epistle/group.hpp"

#include "group/group_impl.hpp"
#include "support/round_trip.hpp"
#include "support/scenario.hpp"

namespace epistle::testing {
namespace {

constexpr std::chrono::milliseconds kLongest{20'000};

/// What every rank gets that makes the call of its number, all at once.
std::vector<Outcome> outcomes_of(const std::vector<std::function<void(Group&)>>& calls,
                                 const std::vector<int>& mask_in_force) {
  std::vector<Outcome> outcomes(calls.size());
  run_thread_ranks(static_cast<int>(calls.size()),
                   [&](Group& group) {
                     const auto& call = calls[static_cast<std::size_t>(group.rank())];
                     if (!call) return;
                     if (!mask_in_force.empty()) group.set_mask(mask_in_force);
                     const auto start = std::chrono::steady_clock::now();
                     outcomes[static_cast<std::size_t>(group.rank())] = outcome_of([&] { call(group); });
                     EXPECT_LT(std::chrono::steady_clock::now() - start, kLongest / 2);
                     EXPECT_EQ(group.masked(), mask_in_force);
                     EXPECT_NO_THROW(group.barrier());
                   },
                   {.timeout = kLongest});
  return outcomes;
}

TEST(MaskAndOtherCalls, AreToldOfEachOtherAtOnce) {
  const auto masks = [](const std::vector<int>& more) {
    return [more](Group& group) {
      std::vector<int> ranks = group.masked();
      ranks.insert(ranks.end(), more.begin(), more.end());
      group.set_mask(ranks);
    };
  };
  const auto barrier = [](Group& group) { group.barrier(); };
  const auto gathers = [](Group& group) {
    std::vector<int> all(static_cast<std::size_t>(group.size()));
    const int own = group.rank();
    group.all_gather(&own, sizeof(own), all.data());
  };
  const std::vector<std::vector<std::function<void(Group&)>>> cases = {
      {masks({}), barrier, masks({})},
      {barrier, masks({}), gathers},
      {masks({2}), masks({2}), masks({}), barrier},
      {masks({3}), masks({}), barrier, gathers},
      {masks({1}), masks({2}), masks({0})},
      {barrier, barrier, barrier, masks({1}), barrier, barrier}};
  for (std::size_t idx = 0; idx < cases.size(); ++idx) {
    for (const bool is_masked : {false, true}) {
      SCOPED_TRACE(fmt::format("case {}, {}", idx, is_masked ? "one more is masked out" : "nobody is masked out"));
      auto calls = cases[idx];
      if (is_masked) calls.emplace_back();
      const std::vector<int> in_force =
          is_masked ? std::vector<int>{static_cast<int>(cases[idx].size())} : std::vector<int>{};
      const std::vector<Outcome> outcomes = outcomes_of(calls, in_force);
      for (std::size_t rank = 0; rank < cases[idx].size(); ++rank) {
        ASSERT_TRUE(outcomes[rank].has_value()) << "rank " << rank;
        EXPECT_EQ(outcomes[rank]->code(), ErrorCode::kShapeMismatch) << outcomes[rank]->what();
      }
    }
  }
}

// However the ranks come, all find the same; what they say of it leaves nothing behind for the next round.
TEST(MaskAndOtherCalls, AgreeInWhateverOrderRanksCome) {
  constexpr int kRounds = 150;
  for (const int num_ranks : {2, 3, 6}) {
    std::vector<std::vector<ErrorCode>> codes(kRounds, std::vector<ErrorCode>(static_cast<std::size_t>(num_ranks)));
    const auto picks_mask = [](int rank, int round) {
      return mix(static_cast<std::uint64_t>(round), static_cast<std::uint64_t>(rank)) % 3 == 0;
    };
    run_thread_ranks(num_ranks,
                     [&](Group& group) {
                       for (int round = 0; round < kRounds; ++round) {
                         const auto rank = static_cast<std::uint64_t>(group.rank());
                         const std::uint64_t delay_us = mix(static_cast<std::uint64_t>(round) + 1000, rank) % 400;
                         std::this_thread::sleep_for(std::chrono::microseconds(delay_us));
                         const Outcome outcome = outcome_of([&] {
                           if (picks_mask(group.rank(), round)) return group.clear_mask();
                           group.barrier();
                         });
                         codes[static_cast<std::size_t>(round)][rank] = outcome ? outcome->code() : ErrorCode::kOk;
                       }
                     },
                     {.timeout = kLongest});
    for (int round = 0; round < kRounds; ++round) {
      int num_masks = 0;
      for (int rank = 0; rank < num_ranks; ++rank) num_masks += picks_mask(rank, round) ? 1 : 0;
      const ErrorCode expected = num_masks == 0 || num_masks == num_ranks ? ErrorCode::kOk : ErrorCode::kShapeMismatch;
      for (const ErrorCode code : codes[static_cast<std::size_t>(round)]) {
        EXPECT_EQ(code, expected) << "round " << round << " of " << num_ranks << " ranks, " << num_masks
                                  << " in set_mask";
      }
    }
  }
}

// It has come to the step of the others, who therefore do not look for it.
TEST(MaskAndOtherCalls, TellOfARankThatWasLostBehindItsArrival) {
  run_thread_ranks(3,
                   [](Group& group) {
                     if (group.rank() == 2) {
                       (void)group.impl().arrive({.kind = epistle::CallKind::kBarrier});
                       return;
                     }
                     if (group.rank() == 1) {
                       const Outcome outcome = outcome_of([&] { group.barrier(); });
                       ASSERT_TRUE(outcome.has_value());
                       EXPECT_EQ(outcome->code(), ErrorCode::kPeerLost) << outcome->what();
                       EXPECT_EQ(outcome->context().peer_rank, 2) << outcome->what();
                     } else {
                       while (group.suspects().empty()) std::this_thread::sleep_for(std::chrono::microseconds(100));
                     }
                     EXPECT_NO_THROW(group.set_mask({2}));
                     EXPECT_NO_THROW(group.barrier());
                   },
                   {.timeout = kLongest});
}

}  // namespace
}  // namespace epistle::testing
