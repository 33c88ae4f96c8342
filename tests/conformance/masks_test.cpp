// A group that goes on without some of its ranks: what is left is bit for bit what the oracle makes of it, on every
// dispatcher and kind of group.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <iostream>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"

#include "support/dispatcher_names.hpp"
#include "support/mask_cases.hpp"
#include "support/process_ranks.hpp"
#include "support/round_trip.hpp"
#include "support/shared_array.hpp"

namespace epistle::testing {
namespace {

using std::chrono::milliseconds;

constexpr int kMaskRanks = 4;
constexpr milliseconds kPatience{20'000};
constexpr milliseconds kImpatience{300};

bool leaves_out(const Scenario& scenario, int rank) {
  return std::find(scenario.masked.begin(), scenario.masked.end(), rank) != scenario.masked.end();
}

/// Layouts, sizings and payloads whose ways differ.
std::vector<Scenario> scenarios_of(const std::vector<int>& masked) {
  Scenario token_rows = masked_scenario(masked);
  token_rows.config.order = SumOrder::kFlat;
  Scenario expert_rows = masked_scenario(masked);
  expert_rows.config.layout = ExpertMajor{.alignment = 4};
  expert_rows.config.num_buffers = 2;
  expert_rows.stage_combine = true;
  Scenario blocks = masked_scenario(masked);
  blocks.config.layout = ExpertBlocks{.rows_per_expert = 6};
  blocks.config.sizing = Capacity{};
  blocks.config.overflow = OverflowPolicy::kDrop;
  blocks.config.wire = Fp8Blocks{};
  blocks.hot_experts = true;
  Scenario fixed = masked_scenario(masked);
  fixed.config.sizing = Capacity{.rows_per_rank = 20};
  fixed.config.overflow = OverflowPolicy::kDrop;
  fixed.config.input = DType::kFp8E4m3;
  fixed.config.order = SumOrder::kDeepEpV2;
  return {token_rows, expert_rows, blocks, fixed};
}

/// All ranks make a round trip; then some are masked out, and the others play everything there is.
Mismatch play_with_mask(Group& group, const std::string& name, const Scenario& scenario, bool split_halves) {
  Scenario whole = scenario;
  whole.masked.clear();
  Subject subject(group, name, scenario.config, {.split_halves = split_halves});
  EPISTLE_RETURN_MISMATCH(round_trip(subject, Round(whole, 5)));
  if (leaves_out(scenario, group.rank())) return std::nullopt;
  group.set_mask(scenario.masked);
  EPISTLE_RETURN_MISMATCH(expect_equal(group.masked() == scenario.masked, true, "masked() is what was set"));
  EPISTLE_RETURN_MISMATCH(play_on(subject, scenario));
  Subject later(group, name, scenario.config);
  return round_trip(later, Round(scenario, 3));
}

/// A rank that the others leave out may be told so before it has seen the end of its last call.
Mismatch go_on(Group& group, const std::string& name, const Scenario& scenario, bool split_halves) {
  try {
    return play_with_mask(group, name, scenario, split_halves);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kMaskedOut || !leaves_out(scenario, group.rank())) throw;
    return std::nullopt;
  }
}

const std::vector<std::vector<int>> kMasks = {{}, {0}, {1}, {3}, {0, 2}, {1, 2, 3}};

class Masks : public ::testing::TestWithParam<std::string> {};

TEST_P(Masks, LeaveOutTokensAndExpertsOfThreads) {
  for (const std::vector<int>& masked : kMasks) {
    for (const Scenario& scenario : scenarios_of(masked)) {
      SCOPED_TRACE(::testing::PrintToString(masked));
      std::vector<Mismatch> found(kMaskRanks);
      run_thread_ranks(kMaskRanks,
                       [&](Group& group) {
                         found[static_cast<std::size_t>(group.rank())] =
                             go_on(group, GetParam(), scenario, masked.size() == 1);
                       },
                       {.timeout = kPatience});
      for (const Mismatch& mismatch : found) EXPECT_FALSE(mismatch.has_value()) << *mismatch;
    }
  }
}

TEST_P(Masks, LeaveOutTokensAndExpertsOverProcesses) {
  for (const std::vector<int>& masked : {std::vector<int>{0}, std::vector<int>{1, 3}}) {
    SCOPED_TRACE(::testing::PrintToString(masked));
    const Scenario scenario = scenarios_of(masked)[1];
    const auto exits = run_process_ranks(kMaskRanks,
                                         [&](Group& group) {
                                           const Mismatch found = go_on(group, GetParam(), scenario, false);
                                           if (found) std::cerr << *found << std::endl;
                                           return found ? 1 : 0;
                                         },
                                         {.timeout = kPatience});
    for (const int exit : exits) EXPECT_EQ(exit, 0);
  }
}

TEST_P(Masks, LeaveZerosWhereNoExpertIsLeft) {
  const std::vector<int> masked = {1, 2, 3};
  const Scenario scenario = masked_scenario(masked);
  const Round round(scenario, 0);
  const Checker checker(round);
  run_thread_ranks(kMaskRanks,
                   [&](Group& group) {
                     if (group.rank() != 0) return;
                     group.set_mask(masked);
                     Subject subject(group, GetParam(), scenario.config);
                     RankInputs inputs(round, 0);
                     const Received received = subject.dispatch(inputs.prepare_and_dispatch());
                     subject.write_outputs(received, round.values(9, 0, received.num_rows()));
                     RowsBuffer out = inputs.sums();
                     subject.combine({.received = received, .out = out.view()});
                     const std::vector<std::byte> sums = out.compact();
                     const auto top_k = static_cast<std::size_t>(round.config().top_k);
                     const auto row_bytes = static_cast<std::size_t>(round.output_row_bytes());
                     int num_without = 0;
                     for (std::size_t token = 0; token < sums.size() / row_bytes; ++token) {
                       const auto first =
                           checker.layout(0).dst_row.begin() + static_cast<std::ptrdiff_t>(token * top_k);
                       if (std::any_of(first, first + static_cast<std::ptrdiff_t>(top_k),
                                       [](std::int32_t row) { return row >= 0; })) {
                         continue;
                       }
                       ++num_without;
                       const std::vector<std::byte> zeros(row_bytes);
                       EXPECT_EQ(std::memcmp(&sums[token * row_bytes], zeros.data(), row_bytes), 0) << token;
                     }
                     EXPECT_GT(num_without, 0);
                   },
                   {.timeout = kPatience});
}

// ---- Ranks that are left out while they live ------------------------------------------------------------------------

TEST_P(Masks, TellARankThatItIsLeftOutAndLetItComeBack) {
  constexpr int kOut = 1;
  const Scenario whole = masked_scenario({});
  const Scenario rest = masked_scenario({kOut});
  Meeting meeting(kMaskRanks);
  std::vector<Mismatch> found(kMaskRanks);
  run_thread_ranks(
      kMaskRanks,
      [&](Group& group) {
        const auto play = [&]() -> Mismatch {
          const int rank = group.rank();
          Subject subject(group, GetParam(), whole.config);
          const Round round(whole, 0);
          RankInputs inputs(round, rank);
          const Handle old = subject.prepare(inputs.prepare());
          Received held = subject.dispatch(inputs.dispatch(old));
          const ReceivedCopy before = subject.read(held);
          for (int idx = 0; idx < 2; ++idx) {
            // Otherwise the rank may be told before it has seen the end of its last call.
            meeting.wait();
            if (rank != kOut) {
              group.set_mask({kOut});
              EPISTLE_RETURN_MISMATCH(round_trip(subject, Round(rest, 2 * idx)));
              const ErrorCode refused = code_of([&] { (void)subject.dispatch(inputs.dispatch(old)); });
              EPISTLE_RETURN_MISMATCH(expect_equal(refused == ErrorCode::kHandleMismatch, true, "an old handle"));
            }
            meeting.wait();
            if (rank == kOut) {
              const auto is_told = [&](const std::function<void()>& call) {
                return expect_equal(code_of(call) == ErrorCode::kMaskedOut, true, "the error of a rank left out");
              };
              EPISTLE_RETURN_MISMATCH(is_told([&] { group.barrier(); }));
              EPISTLE_RETURN_MISMATCH(is_told([&] { (void)subject.prepare(inputs.prepare()); }));
              EPISTLE_RETURN_MISMATCH(is_told([&] { (void)subject.dispatch(inputs.dispatch(old)); }));
              EPISTLE_RETURN_MISMATCH(expect_equal(subject.dispatcher().poll() != Health::kOk, true, "its poll()"));
            }
            group.clear_mask();
            EPISTLE_RETURN_MISMATCH(expect_equal(group.masked().empty(), true, "nobody is masked"));
            EPISTLE_RETURN_MISMATCH(expect_equal(subject.dispatcher().poll() == Health::kOk, true, "poll()"));
            EPISTLE_RETURN_MISMATCH(round_trip(subject, Round(whole, 2 * idx + 1)));
          }
          const ReceivedCopy after = subject.read(held);
          return expect_equal(after.row_bytes() == before.row_bytes(), true, "rows of a lease from before");
        };
        found[static_cast<std::size_t>(group.rank())] = play();
      },
      {.timeout = kPatience});
  for (const Mismatch& mismatch : found) EXPECT_FALSE(mismatch.has_value()) << *mismatch;
}

INSTANTIATE_TEST_SUITE_P(All, Masks, ::testing::ValuesIn(dispatcher_names()),
                         [](const auto& param_info) { return param_info.param; });

// ---- The change itself ----------------------------------------------------------------------------------------------

TEST(MaskChange, IsRefusedWhereRanksDiffer) {
  std::vector<Outcome> outcomes(3);
  Meeting meeting(3);
  run_thread_ranks(3,
                   [&](Group& group) {
                     const std::vector<int> mask = group.rank() == 0 ? std::vector<int>{} : std::vector<int>{0};
                     const auto rank = static_cast<std::size_t>(group.rank());
                     if (group.rank() == 2) {
                       outcomes[rank] = outcome_of([&] { group.set_mask({1}); });
                     } else {
                       outcomes[rank] = outcome_of([&] { group.set_mask(mask); });
                     }
                     // Nothing has changed, and the same change by all goes through.
                     EXPECT_TRUE(group.masked().empty());
                     EXPECT_NO_THROW(group.barrier());
                     meeting.wait();
                     if (group.rank() == 0) return;
                     EXPECT_NO_THROW(group.set_mask({0}));
                   },
                   {.timeout = kImpatience});
  for (const Outcome& outcome : outcomes) {
    ASSERT_TRUE(outcome.has_value());
    EXPECT_EQ(outcome->code(), ErrorCode::kShapeMismatch) << outcome->what();
  }
}

TEST(MaskChange, NamesTheRankThatDidNotCome) {
  std::vector<Outcome> outcomes(3);
  Meeting meeting(3);
  run_thread_ranks(3,
                   [&](Group& group) {
                     if (group.rank() != 2) {
                       outcomes[static_cast<std::size_t>(group.rank())] = outcome_of([&] { group.set_mask({}); });
                     }
                     meeting.wait();
                   },
                   {.timeout = kImpatience});
  for (std::size_t rank = 0; rank < 2; ++rank) {
    ASSERT_TRUE(outcomes[rank].has_value());
    EXPECT_EQ(outcomes[rank]->code(), ErrorCode::kTimeout) << outcomes[rank]->what();
    // Rank 0, which leads, waits less long than the others, so these may miss it instead.
    const int peer = outcomes[rank]->context().peer_rank;
    EXPECT_TRUE(peer == 2 || (rank == 1 && peer == 0)) << outcomes[rank]->what();
  }
}

TEST(MaskChange, NamesTheRankThatHasGone) {
  run_thread_ranks(3,
                   [&](Group& group) {
                     if (group.rank() == 1) return;
                     const Outcome outcome = outcome_of([&] { group.set_mask({}); });
                     ASSERT_TRUE(outcome.has_value());
                     EXPECT_EQ(outcome->code(), ErrorCode::kPeerLost) << outcome->what();
                     EXPECT_EQ(outcome->context().peer_rank, 1) << outcome->what();
                     EXPECT_EQ(group.suspects(), std::vector<int>{1});
                     group.set_mask(group.suspects());
                     EXPECT_TRUE(group.suspects().empty());
                     EXPECT_NO_THROW(group.barrier());
                     std::vector<int> ranks(3, -1);
                     const int own = group.rank();
                     group.all_gather(&own, sizeof(own), ranks.data());
                     EXPECT_EQ(ranks, (std::vector<int>{0, 0, 2}));
                   },
                   {.timeout = kPatience});
}

TEST(MaskChange, TakesRanksOfTheGroupAndNotTheCallers) {
  run_thread_ranks(2,
                   [&](Group& group) {
                     const auto refused = [&](const std::vector<int>& mask) {
                       return code_of([&] { group.set_mask(mask); }) == ErrorCode::kInvalidArgument;
                     };
                     EXPECT_TRUE(refused({-1}));
                     EXPECT_TRUE(refused({2}));
                     EXPECT_TRUE(refused({group.rank()}));
                     EXPECT_TRUE(refused({0, 1}));
                     const Outcome own = outcome_of([&] { group.set_mask({1, 0}); });
                     ASSERT_TRUE(own.has_value());
                     EXPECT_NE(std::string(own->what()).find("set_mask of rank(s) 0, 1"), std::string::npos)
                         << own->what();
                     EXPECT_NO_THROW(group.barrier());
                   },
                   {.timeout = kPatience});
}

}  // namespace
}  // namespace epistle::testing
