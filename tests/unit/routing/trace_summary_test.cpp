#include <algorithm>
#include <fstream>
#include <numeric>

#include <sys/resource.h>

#include <gtest/gtest.h>

#include "epistle/trace.hpp"

#include "support/sanitizers.hpp"
#include "support/trace_files.hpp"

namespace epistle {
namespace {

using test::gzip;
using test::recorded_traces;
using test::TempDir;

using Counts = std::vector<std::int64_t>;

std::vector<TraceLayerSummary> summarize(const std::string& path) {
  std::vector<TraceLayerSummary> layers;
  summarize_trace(path, [&layers](const TraceLayerSummary& layer) { layers.push_back(layer); });
  return layers;
}

TEST(TraceSummary, CountsTokensPerExpert) {
  const TempDir dir;
  const std::string path =
      dir.write("trace.jsonl.gz",
                gzip(R"({"layer":1,"num_experts":4,"top_k":2,"num_tokens":3,"expert_ids":[[0,1],[1,-1],[-1,-1]]})"
                     "\n"
                     R"({"expert_ids":[[2],[2]],"layer":0,"num_experts":5,"top_k":1,"num_tokens":2})"
                     "\n"));
  const auto layers = summarize(path);
  ASSERT_EQ(layers.size(), 2U);
  EXPECT_EQ(layers[0].layer, 1);
  EXPECT_EQ(layers[0].num_experts, 4);
  EXPECT_EQ(layers[0].top_k, 2);
  EXPECT_EQ(layers[0].num_tokens, 3);
  EXPECT_EQ(layers[0].num_dropped, 3);
  EXPECT_EQ(layers[0].tokens_per_expert, (Counts{1, 2, 0, 0}));
  EXPECT_EQ(layers[1].layer, 0);
  EXPECT_EQ(layers[1].num_dropped, 0);
  EXPECT_EQ(layers[1].tokens_per_expert, (Counts{0, 0, 2, 0, 0}));
}

TEST(TraceSummary, ReportsProgressUpToTheEnd) {
  const TempDir dir;
  const std::string space = "\n" + std::string(std::size_t{20} << 20, ' ') + "\n";
  const std::string packed = gzip(R"({"layer":1,"num_experts":4,"top_k":1,"num_tokens":1,"expert_ids":[[0]]})" + space +
                                  R"({"layer":2,"num_experts":4,"top_k":1,"num_tokens":1,"expert_ids":[[0]]})" + space);
  const std::string path = dir.write("trace.jsonl.gz", packed);
  std::vector<std::int64_t> reports;
  summarize_trace(
      path, [](const TraceLayerSummary&) {},
      [&](std::int64_t bytes_read, std::int64_t bytes_total) {
        EXPECT_EQ(bytes_total, static_cast<std::int64_t>(packed.size()));
        reports.push_back(bytes_read);
      });
  ASSERT_GE(reports.size(), 3U);
  EXPECT_TRUE(std::is_sorted(reports.begin(), reports.end()));
  EXPECT_EQ(reports.back(), static_cast<std::int64_t>(packed.size()));
}

// Peak memory of the process, in KiB.
std::int64_t peak_memory_kib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

TEST(TraceSummary, MemoryDoesNotGrowWithTokens) {
  if (testing::kInstrumented) GTEST_SKIP() << "a sanitizer's shadow memory hides what the reader takes";
  constexpr std::int64_t kTokens = 2'000'000;
  constexpr std::int64_t kGrowthLimitKib = 8 * 1024;  // the ids alone would take 48 MB
  const TempDir dir;
  const std::string path = dir.file("large.jsonl");
  {
    std::ofstream file(path);
    file << R"({"layer":1,"num_experts":8,"top_k":6,"num_tokens":)" << kTokens << R"(,"expert_ids":[[0,1,2,3,4,5])";
    for (std::int64_t token = 1; token < kTokens; ++token) file << ",[0,1,2,3,4,5]";
    file << "]}\n"
         << R"({"layer":2,"num_experts":8,"top_k":1,"num_tokens":1,"expert_ids":[[7]]})";
  }
  const std::int64_t before_kib = peak_memory_kib();
  const auto layers = summarize(path);
  ASSERT_EQ(layers.size(), 2U);
  EXPECT_EQ(layers[0].tokens_per_expert[5], kTokens);
  EXPECT_EQ(read_trace_layer(path, {.layer = 2}).table.expert_ids, std::vector<std::int32_t>{7});
  EXPECT_EQ(read_trace_layer(path, {.layer = 1, .max_tokens = 10}).table.num_tokens, 10);
  EXPECT_LT(peak_memory_kib() - before_kib, kGrowthLimitKib);
}

TEST(RecordedTrace, SummaryAndRowsAgree) {
  const auto paths = recorded_traces();
  if (paths.empty()) GTEST_SKIP() << "no recorded traces here; set EPISTLE_SHARED_DIR to the folder of data/traces";
  for (const std::string& path : paths) {
    SCOPED_TRACE(path);
    const auto layers = summarize(path);
    ASSERT_FALSE(layers.empty());
    const TraceLayerSummary& last = layers.back();
    EXPECT_EQ(std::accumulate(last.tokens_per_expert.begin(), last.tokens_per_expert.end(), last.num_dropped),
              last.num_tokens * last.top_k);
    const TraceLayer layer = read_trace_layer(path, {.layer = last.layer});
    EXPECT_EQ(layer.table.num_tokens, last.num_tokens);
    Counts counts(static_cast<std::size_t>(last.num_experts), 0);
    for (const std::int32_t id : layer.table.expert_ids) {
      if (id != kNoExpert) ++counts.at(static_cast<std::size_t>(id));
    }
    EXPECT_EQ(counts, last.tokens_per_expert);
    if (testing::kInstrumented) break;
  }
}

TEST(RecordedTrace, RanksTakeTheirPartsOfIt) {
  const auto paths = recorded_traces();
  if (paths.empty()) GTEST_SKIP() << "no recorded traces here; set EPISTLE_SHARED_DIR to the folder of data/traces";
  const RoutingTable whole = read_trace_layer(paths.front()).table;
  constexpr std::int64_t kTokens = 3000;  // the third rank wraps round
  for (std::int32_t rank = 0; rank < 3; ++rank) {
    const RoutingTable table = generate_routing(RoutingSpec::parse("trace:" + paths.front()),
                                                {.num_tokens = kTokens, .rank = rank, .num_ranks = 3});
    ASSERT_EQ(table.num_tokens, kTokens);
    for (std::int64_t token = 0; token < kTokens; ++token) {
      const std::int64_t row = (rank * kTokens + token) % whole.num_tokens;
      for (std::int64_t k_idx = 0; k_idx < whole.top_k; ++k_idx) {
        const auto here = static_cast<std::size_t>(token * whole.top_k + k_idx);
        const auto there = static_cast<std::size_t>(row * whole.top_k + k_idx);
        ASSERT_EQ(table.expert_ids[here], whole.expert_ids[there]);
        ASSERT_EQ(table.weights[here], whole.weights[there]);
      }
    }
  }
}

}  // namespace
}  // namespace epistle
