// RoutingStats and WireBytes: counted from the table, on fresh handles and on recycled ones.
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"
#include "epistle/group.hpp"
#include "epistle/routing.hpp"

#include "layout/dispatch_layout.hpp"
#include "support/dispatcher_names.hpp"
#include "support/scenario.hpp"

namespace epistle {
namespace {

constexpr int kRanks = 4;
constexpr std::int64_t kTokensPerRank = 33;
constexpr std::int64_t kRowBytes = 64;

DispatcherConfig config_of(OutputLayout layout, SumOrder order) {
  DispatcherConfig config;
  config.hidden = kRowBytes / 2;
  config.num_experts = 10;
  config.top_k = 3;
  config.max_tokens = kTokensPerRank;
  config.layout = testing::layout_of(layout, /*alignment=*/1, /*rows_per_expert=*/0);
  config.order = order;
  return config;
}

struct RowCounts {
  std::int64_t rows = 0;
  std::int64_t remote_rows = 0;
  std::int64_t remote_assignments = 0;
};

RowCounts count(const RoutingTable& table, int rank) {
  const ExpertPartition partition{table.num_experts, kRanks};
  RowCounts counts;
  for (std::int64_t token = 0; token < table.num_tokens; ++token) {
    std::set<int> ranks;
    for (std::int32_t position = 0; position < table.top_k; ++position) {
      const int dst = partition.rank_of(table.expert_ids[static_cast<std::size_t>(token * table.top_k + position)]);
      ranks.insert(dst);
      counts.remote_assignments += dst != rank ? 1 : 0;
    }
    counts.rows += static_cast<std::int64_t>(ranks.size());
    counts.remote_rows += static_cast<std::int64_t>(ranks.size()) - (ranks.contains(rank) ? 1 : 0);
  }
  return counts;
}

class RoutingStatsOf : public ::testing::TestWithParam<std::string> {};

TEST_P(RoutingStatsOf, FreshAndRecycledHandles) {
  run_thread_ranks(kRanks, [](Group& group) {
    Dispatcher dispatcher(group, GetParam(), config_of(OutputLayout::kTokenMajor, SumOrder::kHierarchical));
    for (std::uint64_t seed = 1; seed <= 4; ++seed) {
      // Fewer and fewer tokens: a count left over from the last routing would show.
      const RoutingTable table = generate_routing({.kind = RoutingKind::kUniform},
                                                  {.num_tokens = kTokensPerRank - static_cast<std::int64_t>(7 * seed),
                                                   .num_experts = 10,
                                                   .top_k = 3,
                                                   .rank = group.rank(),
                                                   .num_ranks = kRanks,
                                                   .seed = seed});
      const Handle handle = dispatcher.prepare({.expert_ids = table.ids(), .weights = table.probs()});
      const RoutingStats& stats = handle.wait_stats();
      const RowCounts expected = count(table, group.rank());
      EXPECT_EQ(stats.sent_rows, expected.rows) << "rank " << group.rank() << ", seed " << seed;
      EXPECT_EQ(stats.sent_remote_rows, expected.remote_rows);
      EXPECT_EQ(stats.sent_remote_assignments, expected.remote_assignments);
      EXPECT_EQ(stats.received_rows, stats.output_rows);

      const std::int64_t own[] = {stats.sent_rows, stats.received_rows, stats.sent_remote_rows,
                                  stats.received_remote_rows};
      std::int64_t all[kRanks][4];
      group.all_gather(own, sizeof(own), all);
      std::int64_t sums[4] = {};
      for (const auto& rank : all) {
        for (int idx = 0; idx < 4; ++idx) sums[idx] += rank[idx];
      }
      EXPECT_EQ(sums[0], sums[1]);
      EXPECT_EQ(sums[2], sums[3]);
    }
  });
}

TEST_P(RoutingStatsOf, WireBytesFollowTheTransport) {
  const bool alltoall = GetParam() == "alltoall";
  for (const OutputLayout layout : {OutputLayout::kTokenMajor, OutputLayout::kExpertMajor}) {
    for (const SumOrder order : {SumOrder::kHierarchical, SumOrder::kFlat, SumOrder::kDeepEpV2}) {
      run_thread_ranks(kRanks, [&](Group& group) {
        Dispatcher dispatcher(group, GetParam(), config_of(layout, order));
        const RoutingTable table = generate_routing(
            {.kind = RoutingKind::kUniform},
            {.num_tokens = kTokensPerRank, .num_experts = 10, .top_k = 3, .rank = group.rank(), .num_ranks = kRanks});
        const Handle handle = dispatcher.prepare({.expert_ids = table.ids(), .weights = table.probs()});
        const RowCounts expected = count(table, group.rank());
        const bool token_major = layout == OutputLayout::kTokenMajor;
        const bool sums_first = token_major || (alltoall && order != SumOrder::kFlat);
        const WireBytes wire = dispatcher.wire_bytes(handle);
        EXPECT_EQ(wire.dispatch,
                  kRowBytes * (alltoall && !token_major ? expected.remote_assignments : expected.remote_rows));
        EXPECT_EQ(wire.combine, kRowBytes * (sums_first ? expected.remote_rows : expected.remote_assignments));
      });
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Host, RoutingStatsOf, ::testing::ValuesIn(testing::fast_dispatcher_names()));

}  // namespace
}  // namespace epistle
