// In steady state nothing is allocated: after a few round trips, prepare, dispatch and combine run in the memory that
// they have.
#include <algorithm>
#include <deque>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"

#include "allocation/counting_new.hpp"
#include "support/dispatcher_names.hpp"
#include "support/player.hpp"

namespace epistle::testing {
namespace {

constexpr int kNumRanks = 4;
constexpr int kNumRoutings = 6;
constexpr int kNumRounds = 3;

/// Everything one rank gives and takes in a round trip.
struct RoundTripBuffers {
  RoundTripBuffers(const Scenario& scenario, int round_idx, int rank)
      : round(scenario, round_idx), inputs(round, rank), rows(kMostRowBytes), out(inputs.sums()) {}
  RoundTripBuffers(const RoundTripBuffers&) = delete;
  RoundTripBuffers& operator=(const RoundTripBuffers&) = delete;

  static constexpr std::size_t kMostRowBytes = 1 << 18;  ///< of any output here

  Round round;
  RankInputs inputs;
  std::vector<std::byte> rows;
  RowsBuffer out;
};

void round_trip(Dispatcher& dispatcher, RoundTripBuffers& buffers) {
  const Handle handle = dispatcher.prepare(buffers.inputs.prepare());
  Received received = dispatcher.dispatch(buffers.inputs.dispatch(handle));
  const Rows outputs = received.expert_outputs();
  Rows rows = outputs;
  rows.data = buffers.rows.data();
  dispatcher.combine({.handle = handle, .rows = rows, .out = buffers.out.view()});
  dispatcher.combine({.received = received, .out = buffers.out.view()});
  dispatcher.dispatch_backward({.handle = handle, .grad_rows = rows, .grad_tokens = buffers.out.view()});
  received.release();
  (void)dispatcher.combine_backward({.handle = handle, .grad_out = buffers.out.view()});
  received = dispatcher.dispatch(buffers.inputs.prepare_and_dispatch());
  Pending pending = dispatcher.combine_send({.received = received, .out = buffers.out.view()});
  dispatcher.combine_receive(std::move(pending));
}

using Parameters = std::tuple<std::string, OutputLayout, SizingMode, SumOrder, int, Wire>;

class SteadyState : public ::testing::TestWithParam<Parameters> {
 protected:
  Scenario scenario() const {
    const auto& [name, layout, sizing, order, num_workers, wire] = GetParam();
    Scenario scenario;
    scenario.config = {.hidden = 64, .num_experts = 10, .top_k = 4, .max_tokens = 64};
    scenario.config.input = std::holds_alternative<AsGiven>(wire) ? DType::kFp8E4m3 : DType::kBf16;
    scenario.config.wire = wire;
    set_layout(scenario.config, layout, sizing, /*capacity_rows=*/200, /*alignment=*/4);
    scenario.config.order = order;
    scenario.config.overflow = OverflowPolicy::kDrop;
    scenario.num_workers = num_workers;
    scenario.tokens_per_rank = {64, 20, 0, 41};
    return scenario;
  }
};

TEST_P(SteadyState, AllocatesNothing) {
  std::int64_t num_in_warm_up = 0;
  std::int64_t num_in_steady_state = -1;
  run_thread_ranks(kNumRanks, [&](Group& group) {
    Dispatcher dispatcher(group, std::get<0>(GetParam()), scenario().config,
                          HostOptions{.num_workers = scenario().num_workers});
    std::deque<RoundTripBuffers> buffers;
    for (int routing = 0; routing < kNumRoutings; ++routing) buffers.emplace_back(scenario(), routing, group.rank());
    group.barrier();
    const std::int64_t at_start = num_allocations();
    group.barrier();
    for (RoundTripBuffers& one : buffers) round_trip(dispatcher, one);
    group.barrier();
    const std::int64_t when_warm = num_allocations();
    group.barrier();
    for (int round = 0; round < kNumRounds; ++round) {
      for (RoundTripBuffers& one : buffers) round_trip(dispatcher, one);
    }
    group.barrier();
    if (group.rank() == 0) {
      num_in_warm_up = when_warm - at_start;
      num_in_steady_state = num_allocations() - when_warm;
    }
    group.barrier();
  });
  EXPECT_GT(num_in_warm_up, 0) << "the counter does not count";
  EXPECT_EQ(num_in_steady_state, 0);
}

std::string case_name(const ::testing::TestParamInfo<Parameters>& info) {
  const auto& [name, layout, sizing, order, num_workers, wire] = info.param;
  std::string text =
      fmt::format("{}_{}_{}_{}_{}workers{}", name, to_string(layout), to_string(sizing), to_string(order), num_workers,
                  std::holds_alternative<AsGiven>(wire) ? "" : "_quantised");
  std::replace(text.begin(), text.end(), '-', '_');
  return text;
}

INSTANTIATE_TEST_SUITE_P(All, SteadyState,
                         ::testing::Combine(::testing::ValuesIn(fast_dispatcher_names()),
                                            ::testing::Values(OutputLayout::kTokenMajor, OutputLayout::kExpertMajor,
                                                              OutputLayout::kExpertBlocks),
                                            ::testing::Values(SizingMode::kExact, SizingMode::kCapacity),
                                            ::testing::Values(SumOrder::kHierarchical, SumOrder::kFlat,
                                                              SumOrder::kDeepEpV2),
                                            ::testing::Values(1, 3), ::testing::Values(Wire(AsGiven{}))),
                         case_name);

INSTANTIATE_TEST_SUITE_P(Quantised, SteadyState,
                         ::testing::Combine(::testing::ValuesIn(fast_dispatcher_names()),
                                            ::testing::Values(OutputLayout::kTokenMajor, OutputLayout::kExpertMajor,
                                                              OutputLayout::kExpertBlocks),
                                            ::testing::Values(SizingMode::kExact, SizingMode::kCapacity),
                                            ::testing::Values(SumOrder::kHierarchical), ::testing::Values(1, 3),
                                            ::testing::Values(Wire(Fp8Blocks{.order = ScaleOrder::kColumns}))),
                         case_name);

}  // namespace
}  // namespace epistle::testing
