#include "measure/bench_collector.hpp"

#include <array>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace epistle {
namespace {

PhaseBytes of(const BytesOfPhases& bytes, BenchPhase phase) { return bytes[static_cast<std::size_t>(phase)]; }

TEST(BenchCollector, PhasesAddUp) {
  LayoutParams params;
  params.num_ranks = 2;
  params.num_experts = 8;
  params.top_k = 2;
  params.row_bytes = 100;
  params.scale_bytes = 10;
  params.combine_row_bytes = 200;
  const DispatchLayout layout(params);
  RoutingStats stats;
  stats.num_tokens = 5;
  stats.sent_rows = 7;
  stats.received_rows = 6;
  stats.output_rows = 6;
  const BytesOfPhases bytes = phase_bytes(layout, stats, {.dispatch = 330, .combine = 800});

  const PhaseBytes prepare = of(bytes, BenchPhase::kLayout);
  EXPECT_EQ(prepare.wire, 0);
  EXPECT_EQ(prepare.moved, 5 * 2 * 8 + 6 * layout.record_bytes());
  const PhaseBytes dispatch = of(bytes, BenchPhase::kDispatch);
  EXPECT_EQ(dispatch.algorithm, 6 * 110);
  EXPECT_EQ(dispatch.wire, 330);
  EXPECT_EQ(dispatch.moved, 11 * 110);
  const PhaseBytes combine = of(bytes, BenchPhase::kCombine);
  EXPECT_EQ(combine.algorithm, 7 * 200);
  EXPECT_EQ(combine.wire, 800);
  EXPECT_EQ(combine.moved, 11 * 200);
  const PhaseBytes cold = of(bytes, BenchPhase::kDispatchWithLayout);
  EXPECT_EQ(cold.wire, 330);
  EXPECT_EQ(cold.moved, prepare.moved + dispatch.moved);
  for (const BenchPhase phase : {BenchPhase::kRoundTrip, BenchPhase::kGraphRoundTrip}) {
    EXPECT_EQ(of(bytes, phase).wire, 1130);
    EXPECT_EQ(of(bytes, phase).algorithm, dispatch.algorithm + combine.algorithm);
    EXPECT_EQ(of(bytes, phase).moved, prepare.moved + dispatch.moved + combine.moved);
  }
}

TEST(BenchCollector, WarmUpsAreNotKept) {
  BenchSpec spec;
  spec.num_warmups = 2;
  PhaseTimes times(spec);
  for (std::int32_t iteration = 0; iteration < 5; ++iteration) times.record(BenchPhase::kCombine, iteration, iteration);
  EXPECT_EQ(times.of(BenchPhase::kCombine), (std::vector<double>{2, 3, 4}));
  EXPECT_TRUE(times.of(BenchPhase::kLayout).empty());
}

TEST(BenchCollector, PairsAreSummedUpBesideWhatTheyAre) {
  std::vector<double> times_us;
  for (int time_us = 200; time_us >= 1; --time_us) times_us.push_back(time_us);
  const PairTimes times = pair_times("direct", {.num = 20, .in_graph = true}, times_us);
  EXPECT_EQ(times.dispatcher, "direct");
  EXPECT_EQ(times.num, 20);
  EXPECT_TRUE(times.in_graph);
  EXPECT_EQ(times.num_samples, 200);
  EXPECT_EQ(times.time_us.median, 100.5);
  EXPECT_EQ(times.time_us.p90, 180.0);
  EXPECT_EQ(times.time_us.p99, 198.0);
}

TEST(BenchCollector, OneRanksDifferenceIsKnownToAll) {
  std::vector<BenchResult> results(3);
  run_thread_ranks(3, [&](Group& group) {
    BenchCollector collector(group, true);
    collector.add_check("direct", std::nullopt, 10);
    EXPECT_TRUE(collector.result().verified);
    collector.add_check("direct", group.rank() == 1 ? Mismatch("row 4 differs") : std::nullopt, 10 + group.rank());
    results[static_cast<std::size_t>(group.rank())] = collector.result();
  });
  for (const BenchResult& result : results) {
    EXPECT_FALSE(result.verified);
    EXPECT_EQ(result.mismatch, "direct, rank 1: row 4 differs");
    EXPECT_EQ(result.verified_bytes, 3 * 10 + 3 * 10 + 0 + 1 + 2);
  }
}

TEST(BenchCollector, PhasesAreMeansOverRanks) {
  std::vector<BenchResult> results(2);
  run_thread_ranks(2, [&](Group& group) {
    BenchCollector collector(group, false);
    BenchSpec spec;
    spec.num_warmups = 0;
    PhaseTimes times(spec);
    times.record(BenchPhase::kDispatch, 0, 8.0);
    BytesOfPhases bytes;
    bytes[static_cast<std::size_t>(BenchPhase::kDispatch)] = {.algorithm = 10, .wire = 4 * group.rank(), .moved = 6};
    constexpr std::array<BenchPhase, 1> kPhases = {BenchPhase::kDispatch};
    collector.add_phases("direct", kPhases, times, bytes);
    results[static_cast<std::size_t>(group.rank())] = collector.result();
  });
  for (const BenchResult& result : results) {
    ASSERT_EQ(result.phases.size(), 1U);
    EXPECT_EQ(result.phases.front().dispatcher, "direct");
    EXPECT_EQ(result.phases.front().time_us.median, 8.0);
    EXPECT_EQ(result.phases.front().algorithm_bytes, 10);
    EXPECT_EQ(result.phases.front().wire_bytes, 2);
    EXPECT_FALSE(result.verified);
  }
}

}  // namespace
}  // namespace epistle
