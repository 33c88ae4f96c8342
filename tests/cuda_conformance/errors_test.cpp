// What the device finds wrong: the rank at fault is told what, the others which rank it was.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/group.hpp"

#include "support/bad_rank.hpp"
#include "support/cuda_devices.hpp"
#include "support/cuda_play.hpp"
#include "support/dispatcher_names.hpp"
#include "support/round_trip.hpp"

namespace epistle::testing {
namespace {

using Clock = std::chrono::steady_clock;

// ---- Bad ids --------------------------------------------------------------------------------------------------------

class CudaErrors : public OnGpu<::testing::TestWithParam<std::string>> {
 protected:
  /// prepare with the ids of the bad rank changed, then a good round trip on the same dispatcher.
  template <typename Id>
  void expect_bad_ids(const std::function<void(std::vector<Id>&)>& change) {
    const Round round(small_scenario(), 0);
    const RoutingTable& table = round.table(kBadRank);
    std::vector<Id> ids(table.expert_ids.begin(), table.expert_ids.end());
    change(ids);
    const auto outcomes = call_on_all_ranks(
        GetParam(), small_scenario(),
        [&](const Caller& caller) {
          PrepareRequest request = caller.inputs.prepare();
          if (caller.rank == kBadRank) request.expert_ids = {ids.data(), table.num_tokens, table.top_k};
          (void)caller.subject.prepare(request);
        },
        on_cuda());
    expect_rejected(outcomes, ErrorCode::kInvalidArgument, [](std::size_t rank, const Error& error) {
      EXPECT_EQ(error.context().rank, static_cast<int>(rank));
      EXPECT_EQ(error.context().phase, Phase::kLayout);
    });
  }
};

TEST_P(CudaErrors, IdBeyondTheLastExpert) {
  expect_bad_ids<std::int32_t>([](auto& ids) { ids[7] = 7; });
}

TEST_P(CudaErrors, IdBelowMinusOne) {
  expect_bad_ids<std::int32_t>([](auto& ids) { ids[0] = -2; });
}

TEST_P(CudaErrors, WideIdThatWouldWrap) {
  expect_bad_ids<std::int64_t>([](auto& ids) { ids[2] = std::int64_t{1} << 32; });
}

TEST_P(CudaErrors, IdTwiceInOneToken) {
  expect_bad_ids<std::int32_t>([](auto& ids) {
    ids[4] = 5;
    ids[5] = 5;
  });
}

/// The same in a dispatch that brings them along, where every routing fits.
TEST_P(CudaErrors, BadIdsOfADispatch) {
  Scenario scenario = small_scenario();
  scenario.config.layout = ExpertBlocks{.rows_per_expert = scenario.config.max_tokens *
                                                           static_cast<std::int64_t>(scenario.tokens_per_rank.size())};
  scenario.config.sizing = Capacity{};
  const Round round(scenario, 0);
  const RoutingTable& table = round.table(kBadRank);
  std::vector<std::int32_t> ids = table.expert_ids;
  ids[1] = ids[0];
  const auto outcomes = call_on_all_ranks(
      GetParam(), scenario,
      [&](const Caller& caller) {
        DispatchRequest request = caller.inputs.prepare_and_dispatch();
        if (caller.rank == kBadRank) request.expert_ids = {ids.data(), table.num_tokens, table.top_k};
        (void)caller.subject.dispatch(request);
      },
      on_cuda());
  expect_rejected(outcomes, ErrorCode::kInvalidArgument, [](std::size_t rank, const Error& error) {
    EXPECT_EQ(error.context().rank, static_cast<int>(rank));
    EXPECT_EQ(error.context().phase, Phase::kLayout);
  });
}

INSTANTIATE_TEST_SUITE_P(All, CudaErrors, ::testing::ValuesIn(one_gpu_dispatcher_names()),
                         [](const auto& param_info) { return param_info.param; });

// ---- Capacity -------------------------------------------------------------------------------------------------------

class CudaCapacity : public OnGpu<::testing::TestWithParam<OutputLayout>> {};

TEST_P(CudaCapacity, RowsThatDoNotFit) {
  Scenario scenario = small_scenario();
  set_layout(scenario.config, GetParam(), SizingMode::kCapacity, /*capacity_rows=*/2);
  std::vector<Outcome> overflow(scenario.tokens_per_rank.size());
  std::vector<Outcome> empty(scenario.tokens_per_rank.size());
  run_thread_ranks(static_cast<int>(overflow.size()),
                   [&](Group& group) {
                     const auto rank = static_cast<std::size_t>(group.rank());
                     const Round round(scenario, 0);
                     Subject subject(group, "direct", scenario.config, on_cuda());
                     const RankInputs inputs(round, group.rank());
                     PrepareRequest request = inputs.prepare();
                     overflow[rank] = outcome_of([&] { (void)subject.prepare(request); });
                     request.expert_ids.num_tokens = 0;
                     empty[rank] = outcome_of([&] { (void)subject.prepare(request); });
                   },
                   {.timeout = kCudaTimeout});
  for (std::size_t rank = 0; rank < overflow.size(); ++rank) {
    SCOPED_TRACE("rank " + std::to_string(rank));
    ASSERT_TRUE(overflow[rank].has_value());
    EXPECT_EQ(overflow[rank]->code(), ErrorCode::kCapacityExceeded) << overflow[rank]->what();
    EXPECT_FALSE(empty[rank].has_value()) << empty[rank]->what();
  }
}

INSTANTIATE_TEST_SUITE_P(All, CudaCapacity,
                         ::testing::Values(OutputLayout::kTokenMajor, OutputLayout::kExpertMajor,
                                           OutputLayout::kExpertBlocks),
                         [](const auto& param_info) {
                           return std::string(param_info.param == OutputLayout::kTokenMajor    ? "TokenMajor"
                                              : param_info.param == OutputLayout::kExpertMajor ? "ExpertMajor"
                                                                                               : "ExpertBlocks");
                         });

// ---- A rank that does not come
// ----------------------------------------------------------------------------------------

using LateParam = std::tuple<std::string, Phase>;

class CudaLateRank : public OnGpu<::testing::TestWithParam<LateParam>> {
 protected:
  static constexpr std::chrono::milliseconds kTimeout{1000};
  // Beyond the timeout: the time until the host has seen it and every rank has agreed on it.
  static constexpr std::chrono::milliseconds kSlack{5000};

  /// Everything up to `last`, that included.
  static void call_until(Subject& subject, const Round& round, int rank, Phase last) {
    RankInputs inputs(round, rank);
    const Handle handle = subject.prepare(inputs.prepare());
    if (last == Phase::kLayout) return;
    const Received received = subject.dispatch(inputs.dispatch(handle));
    if (last == Phase::kDispatch) return;
    RowsBuffer rows = inputs.output_rows(received.num_rows(), round.values(9, rank, received.num_rows()));
    RowsBuffer out = inputs.sums();
    subject.combine({.handle = handle, .rows = rows.view(), .out = out.view()});
  }
};

TEST_P(CudaLateRank, IsNamedWithinTheTimeout) {
  const auto& [dispatcher, missed] = GetParam();
  const Scenario scenario = small_scenario();
  // Starting CUDA and loading kernels takes longer than the timeout below.
  expect_play(dispatcher, scenario);
  if (HasFailure()) return;

  const auto num_ranks = scenario.tokens_per_rank.size();
  std::vector<Outcome> outcomes(num_ranks);
  std::vector<Clock::duration> waited(num_ranks);
  std::atomic<std::size_t> num_done{0};
  run_thread_ranks(static_cast<int>(num_ranks),
                   [&](Group& group) {
                     const auto rank = static_cast<std::size_t>(group.rank());
                     const Round round(scenario, 0);
                     Subject subject(group, dispatcher, scenario.config, on_cuda());
                     if (group.rank() != kBadRank) {
                       const auto begin = Clock::now();
                       outcomes[rank] = outcome_of([&] { call_until(subject, round, group.rank(), missed); });
                       waited[rank] = Clock::now() - begin;
                       ++num_done;
                       return;
                     }
                     if (missed != Phase::kLayout) {
                       call_until(subject, round, group.rank(),
                                  missed == Phase::kCombine ? Phase::kDispatch : Phase::kLayout);
                     }
                     // A rank that leaves is lost, not late.
                     const auto deadline = Clock::now() + kTimeout + kSlack;
                     while (num_done < num_ranks - 1 && Clock::now() < deadline)
                       std::this_thread::sleep_for(kTimeout / 100);
                   },
                   {.timeout = kTimeout});
  for (std::size_t rank = 0; rank < num_ranks; ++rank) {
    if (rank == kBadRank) continue;
    SCOPED_TRACE("rank " + std::to_string(rank));
    ASSERT_TRUE(outcomes[rank].has_value());
    EXPECT_EQ(outcomes[rank]->code(), ErrorCode::kTimeout) << outcomes[rank]->what();
    EXPECT_EQ(outcomes[rank]->context().peer_rank, kBadRank) << outcomes[rank]->what();
    EXPECT_EQ(outcomes[rank]->context().phase, missed) << outcomes[rank]->what();
    EXPECT_GE(waited[rank], kTimeout / 2);
    EXPECT_LE(waited[rank], kTimeout + kSlack);
  }
}

std::string late_case_name(const ::testing::TestParamInfo<LateParam>& param_info) {
  const auto& [dispatcher, phase] = param_info.param;
  return dispatcher + (phase == Phase::kLayout ? "_Prepare" : phase == Phase::kDispatch ? "_Dispatch" : "_Combine");
}

INSTANTIATE_TEST_SUITE_P(All, CudaLateRank,
                         ::testing::Combine(::testing::ValuesIn(one_gpu_dispatcher_names()),
                                            ::testing::Values(Phase::kLayout, Phase::kDispatch, Phase::kCombine)),
                         late_case_name);

}  // namespace
}  // namespace epistle::testing
