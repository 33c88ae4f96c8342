#include "measure/bench_memory.hpp"

#include <atomic>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"

#include "support/dispatcher_names.hpp"
#include "support/scenario.hpp"

namespace epistle {
namespace {

constexpr int kBenchRanks = 3;

BenchSpec make_spec(const std::string& dispatcher, OutputLayout layout, SizingMode sizing) {
  BenchSpec spec;
  spec.dispatchers = {dispatcher};
  spec.config.hidden = 512;
  spec.config.num_experts = 12;
  spec.config.top_k = 4;
  spec.config.max_tokens = 200;
  testing::set_layout(spec.config, layout, sizing, /*capacity_rows=*/1000, /*alignment=*/16);
  return spec;
}

std::vector<std::int64_t> equal_tokens(const BenchSpec& spec, std::size_t num_ranks) {
  return std::vector<std::int64_t>(num_ranks, spec.config.max_tokens);
}

std::vector<RoutingTable> make_tables(const BenchSpec& spec) {
  std::vector<RoutingTable> tables;
  for (int rank = 0; rank < kBenchRanks; ++rank) {
    tables.push_back(
        generate_routing({.kind = RoutingKind::kZipf, .parameter = 1.0}, {.num_tokens = spec.config.max_tokens,
                                                                          .num_experts = spec.config.num_experts,
                                                                          .top_k = spec.config.top_k,
                                                                          .rank = rank,
                                                                          .num_ranks = kBenchRanks}));
  }
  return tables;
}

/// What the dispatcher really commits after one prepare, over all ranks.
std::int64_t committed_bytes(const BenchSpec& spec, const std::vector<RoutingTable>& tables) {
  std::atomic<std::int64_t> total_bytes{0};
  run_thread_ranks(kBenchRanks, [&](Group& group) {
    Dispatcher dispatcher(group, spec.dispatchers.front(), spec.config);
    const RoutingTable& table = tables[static_cast<std::size_t>(group.rank())];
    const Handle handle = dispatcher.prepare({.expert_ids = table.ids(), .weights = table.probs()});
    total_bytes += dispatcher.shared_bytes();
  });
  return total_bytes;
}

TEST(BenchMemory, EstimateHasRoomForTheBuffersAndIsNotFarAbove) {
  for (const std::string& dispatcher : testing::dispatcher_names()) {
    for (const OutputLayout layout :
         {OutputLayout::kTokenMajor, OutputLayout::kExpertMajor, OutputLayout::kExpertBlocks}) {
      for (const SizingMode sizing : {SizingMode::kExact, SizingMode::kCapacity}) {
        SCOPED_TRACE(std::string(dispatcher) + " " + std::string(to_string(layout)) + " " +
                     std::string(to_string(sizing)));
        const BenchSpec spec = make_spec(dispatcher, layout, sizing);
        const std::vector<RoutingTable> tables = make_tables(spec);
        const std::int64_t buffers = committed_bytes(spec, tables);
        const std::int64_t estimate =
            estimate_bench_bytes(spec, tables, {.tokens_per_rank = equal_tokens(spec, kBenchRanks), .verify = false});
        EXPECT_GE(estimate, buffers);
        EXPECT_LE(estimate, buffers * 2 + (std::int64_t{4} << 20));
      }
    }
  }
}

TEST(BenchMemory, OfGpusOnlyCopiesOfTheOutputsCount) {
  BenchSpec spec = make_spec("alltoall", OutputLayout::kExpertMajor, SizingMode::kExact);
  const std::vector<RoutingTable> tables = make_tables(spec);
  const std::int64_t on_host = estimate_bench_bytes(spec, tables, {.tokens_per_rank = equal_tokens(spec, kBenchRanks)});
  spec.device = Device::kCuda;
  const std::int64_t on_cuda = estimate_bench_bytes(spec, tables, {.tokens_per_rank = equal_tokens(spec, kBenchRanks)});
  EXPECT_LT(on_cuda, on_host);
  // Each of the assignments is a row and an expert output.
  const std::int64_t num_assignments = std::int64_t{kBenchRanks} * spec.config.max_tokens * spec.config.top_k;
  EXPECT_GT(on_cuda, num_assignments * spec.config.hidden * 2 * 2);
}

TEST(BenchMemory, RequestsUnderWayHaveBuffersOfTheirOwn) {
  BenchSpec spec = make_spec("direct", OutputLayout::kTokenMajor, SizingMode::kExact);
  const std::vector<RoutingTable> tables = make_tables(spec);
  const std::int64_t one_buffer = committed_bytes(spec, tables);
  spec.contenders = {{.name = "direct", .dispatcher = "direct"}};
  spec.dispatchers.clear();
  const auto estimate = [&](std::int32_t num_in_flight, std::int32_t num_buffers) {
    spec.num_in_flight = num_in_flight;
    spec.contenders.front().num_buffers = num_buffers;
    return estimate_bench_bytes(spec, tables, {.tokens_per_rank = equal_tokens(spec, kBenchRanks)});
  };
  EXPECT_EQ(estimate(3, 1), estimate(1, 3));
  EXPECT_EQ(estimate(2, 3), estimate(1, 3));
  EXPECT_GT(estimate(3, 1), estimate(1, 1) + one_buffer);
}

TEST(BenchMemory, ProcessesHaveTablesOfTheirOwn) {
  const BenchSpec spec = make_spec("direct", OutputLayout::kTokenMajor, SizingMode::kExact);
  const std::int64_t threads =
      estimate_table_bytes(spec, {.tokens_per_rank = equal_tokens(spec, 4), .group = GroupKind::kThreads});
  const std::int64_t processes =
      estimate_table_bytes(spec, {.tokens_per_rank = equal_tokens(spec, 4), .group = GroupKind::kProcesses});
  EXPECT_EQ(processes, 4 * threads);
  EXPECT_GE(threads, 4 * 200 * 4 * 8);
}

TEST(BenchMemory, HugeRunsDoNotOverflow) {
  BenchSpec spec = make_spec("direct", OutputLayout::kTokenMajor, SizingMode::kExact);
  spec.config.max_tokens = std::int64_t{1} << 28;
  spec.config.top_k = 64;
  EXPECT_GT(estimate_table_bytes(spec, {.tokens_per_rank = equal_tokens(spec, 1024), .group = GroupKind::kProcesses}),
            std::int64_t{1} << 50);
}

}  // namespace
}  // namespace epistle
