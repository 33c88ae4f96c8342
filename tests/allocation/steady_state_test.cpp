// In steady state nothing is allocated: after a few round trips, prepare, dispatch and combine run in the memory that
// they have.
#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"

#include "allocation/counting_new.hpp"
#include "support/scenario.hpp"

namespace epistle::testing {
namespace {

constexpr int kNumRanks = 4;
constexpr int kNumRoutings = 6;
constexpr int kNumRounds = 3;

/// Everything one rank gives and takes in a round trip.
struct RoundTripBuffers {
  RoutingTable table;
  std::vector<std::byte> payload;
  std::vector<std::byte> scales;
  std::vector<std::byte> rows;
  std::vector<std::byte> out;
};

void round_trip(Dispatcher& dispatcher, RoundTripBuffers& buffers) {
  const Handle handle = dispatcher.prepare(buffers.table.view());
  (void)dispatcher.dispatch(handle, {.rows = buffers.payload.data(),
                                     .scales = buffers.scales.empty() ? nullptr : buffers.scales.data(),
                                     .num_tokens = buffers.table.num_tokens});
  const auto out_bytes = static_cast<std::int64_t>(buffers.out.size());
  dispatcher.combine(handle, buffers.rows.data(), buffers.out.data(), out_bytes);
  dispatcher.combine(handle, handle.output().combine_rows, buffers.out.data(), out_bytes);
  dispatcher.dispatch_backward(handle, buffers.rows.data(), nullptr, buffers.out.data(), out_bytes, nullptr);
  (void)dispatcher.combine_backward(handle, buffers.out.data(), nullptr, nullptr);
}

using Parameters = std::tuple<std::string, OutputLayout, Sizing, CombineMode, int>;

class SteadyState : public ::testing::TestWithParam<Parameters> {
 protected:
  Scenario scenario() const {
    const auto& [name, layout, sizing, combine, num_workers] = GetParam();
    Scenario scenario;
    scenario.config = {.hidden = 64, .num_experts = 10, .top_k = 4, .max_tokens = 64};
    scenario.config.dtype = DType::kFp8E4m3;
    scenario.config.layout = layout;
    scenario.config.alignment = 4;
    scenario.config.sizing = sizing;
    scenario.config.combine = combine;
    scenario.config.overflow = OverflowPolicy::kDrop;
    scenario.config.num_workers = num_workers;
    if (sizing == Sizing::kCapacity || layout == OutputLayout::kExpertSlots) scenario.config.capacity_rows = 200;
    scenario.tokens_per_rank = {64, 20, 0, 41};
    return scenario;
  }

  std::vector<RoundTripBuffers> buffers_of(int rank) const {
    std::vector<RoundTripBuffers> all;
    const std::size_t most_row_bytes = 1 << 18;  // of any output here
    for (int routing = 0; routing < kNumRoutings; ++routing) {
      const Play play(scenario(), routing);
      all.push_back({.table = play.table(rank),
                     .payload = play.payload(rank),
                     .scales = play.scales(rank),
                     .rows = std::vector<std::byte>(most_row_bytes),
                     .out = std::vector<std::byte>(
                         static_cast<std::size_t>(play.table(rank).num_tokens * play.combine_row_bytes()))});
    }
    return all;
  }
};

TEST_P(SteadyState, AllocatesNothing) {
  std::int64_t num_in_warm_up = 0;
  std::int64_t num_in_steady_state = -1;
  run_thread_ranks(kNumRanks, [&](Group& group) {
    const auto dispatcher = make_dispatcher(std::get<0>(GetParam()), group, scenario().config);
    std::vector<RoundTripBuffers> buffers = buffers_of(group.rank());
    group.barrier();
    const std::int64_t at_start = num_allocations();
    group.barrier();
    for (RoundTripBuffers& one : buffers) round_trip(*dispatcher, one);
    group.barrier();
    const std::int64_t when_warm = num_allocations();
    group.barrier();
    for (int round = 0; round < kNumRounds; ++round) {
      for (RoundTripBuffers& one : buffers) round_trip(*dispatcher, one);
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
  const auto& [name, layout, sizing, combine, num_workers] = info.param;
  std::string text =
      fmt::format("{}_{}_{}_{}_{}workers", name, to_string(layout), to_string(sizing), to_string(combine), num_workers);
  std::replace(text.begin(), text.end(), '-', '_');
  return text;
}

INSTANTIATE_TEST_SUITE_P(All, SteadyState,
                         ::testing::Combine(::testing::Values("direct", "alltoall"),
                                            ::testing::Values(OutputLayout::kTokenMajor, OutputLayout::kExpertMajor,
                                                              OutputLayout::kExpertSlots),
                                            ::testing::Values(Sizing::kExact, Sizing::kCapacity),
                                            ::testing::Values(CombineMode::kHierarchical, CombineMode::kFlat),
                                            ::testing::Values(1, 3)),
                         case_name);

}  // namespace
}  // namespace epistle::testing
