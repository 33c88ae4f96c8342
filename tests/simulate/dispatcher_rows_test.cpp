// The rows that are counted are those that the dispatchers of the host move for the same tokens.
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"
#include "epistle/group.hpp"
#include "epistle/routing.hpp"

#include "simulate/requests_for_tests.hpp"
#include "support/dispatcher_names.hpp"

namespace epistle::simulate::test {
namespace {

constexpr std::int64_t kRowElements = 32;

/// What one rank's dispatcher says, and what it received.
struct MovedRows {
  RoutingStats stats;
  std::int64_t rows = 0;  ///< that arrived
  std::int64_t remote_rows = 0;
  std::int64_t assignments = 0;  ///< of its experts
};

MovedRows move_rows(Group& group, const std::string& name, const SmallShape& shape) {
  DispatcherConfig config;
  config.hidden = kRowElements;
  config.num_experts = shape.num_experts;
  config.top_k = shape.top_k;
  config.max_tokens = shape.tokens_per_rank;
  Dispatcher dispatcher(group, name, config);
  const RoutingTable table = generate_routing(RoutingSpec::parse(shape.routing), {.num_tokens = shape.tokens_per_rank,
                                                                                  .num_experts = shape.num_experts,
                                                                                  .top_k = shape.top_k,
                                                                                  .rank = group.rank(),
                                                                                  .num_ranks = group.size()});
  const std::vector<std::uint16_t> tokens(static_cast<std::size_t>(shape.tokens_per_rank * kRowElements), 0x3f80);
  const Handle handle = dispatcher.prepare({.expert_ids = table.ids(), .weights = table.probs()});
  const Received received = dispatcher.dispatch(
      {.handle = handle, .tokens = {.data = tokens.data(), .num_rows = shape.tokens_per_rank, .hidden = kRowElements}});
  MovedRows moved{.stats = handle.wait_stats()};
  const RowDescription& rows = handle.description();
  for (std::int64_t row = 0; row < rows.num_rows; ++row) {
    ++moved.rows;
    moved.remote_rows += rows.src_rank[row] != group.rank() ? 1 : 0;
    for (std::int32_t place = 0; place < shape.top_k; ++place) {
      moved.assignments += rows.local_experts[row * shape.top_k + place] >= 0 ? 1 : 0;
    }
  }
  return moved;
}

class SimulatedRows : public ::testing::TestWithParam<std::string> {};

TEST_P(SimulatedRows, AreThoseThatTheDispatcherMoves) {
  for (const std::string routing : {"uniform", "zipf:1.2", "balanced"}) {
    for (const std::int32_t num_ranks : {1, 2, 5, 16}) {
      SCOPED_TRACE(fmt::format("{} on {} ranks", routing, num_ranks));
      const SmallShape shape{
          .routing = routing, .num_ranks = num_ranks, .tokens_per_rank = 37, .num_experts = 48, .top_k = 6};
      std::vector<MovedRows> moved(static_cast<std::size_t>(num_ranks));
      run_thread_ranks(num_ranks, [&](Group& group) {
        moved[static_cast<std::size_t>(group.rank())] = move_rows(group, GetParam(), shape);
      });
      const SimulateResult result = run(small_request(shape));
      for (std::size_t rank = 0; rank < moved.size(); ++rank) {
        SCOPED_TRACE(rank);
        const RankRows& simulated = result.ranks.at(rank);
        const RoutingStats& stats = moved[rank].stats;
        EXPECT_EQ(simulated.num_tokens, stats.num_tokens);
        EXPECT_EQ(simulated.sent_rows, stats.sent_rows);
        EXPECT_EQ(simulated.sent_remote_rows, stats.sent_remote_rows);
        EXPECT_EQ(simulated.received_rows, stats.received_rows);
        EXPECT_EQ(simulated.received_remote_rows, stats.received_remote_rows);
        EXPECT_EQ(simulated.sent_remote_assignments, stats.sent_remote_assignments);
        EXPECT_EQ(simulated.received_rows, moved[rank].rows);
        EXPECT_EQ(simulated.received_remote_rows, moved[rank].remote_rows);
        EXPECT_EQ(simulated.assignments, moved[rank].assignments);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Host, SimulatedRows, ::testing::ValuesIn(epistle::testing::dispatcher_names()),
                         [](const auto& test_info) { return test_info.param; });

}  // namespace
}  // namespace epistle::simulate::test
