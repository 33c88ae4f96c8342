#include <gtest/gtest.h>

#include "epistle/routing.hpp"
#include "epistle/trace.hpp"

#include "support/trace_files.hpp"

namespace epistle {
namespace {

using test::expect_error;
using test::gzip;
using test::TempDir;

using Ids = std::vector<std::int32_t>;
using Weights = std::vector<float>;

constexpr std::string_view kLayer1 =
    R"({"layer": 1, "num_experts": 8, "top_k": 2, "num_tokens": 3, "expert_ids": [[0, 1], [2, -1], [7, 3]], )"
    R"("weights": [[0.75, 0.25], [1, 0], [0.5, 0.5]]})"
    "\n";
constexpr std::string_view kLayer2 =
    R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":2,"expert_ids":[[4,5],[6,7]],"weights":[[1,2],[3,4]]})"
    "\n";

std::string two_layers() { return std::string(kLayer1) + std::string(kLayer2); }

class TraceReader : public ::testing::Test {
 protected:
  [[nodiscard]] std::string write(std::string_view content) const { return dir_.write("trace.jsonl", content); }

 private:
  TempDir dir_;
};

void expect_layer_1(const TraceLayer& layer) {
  EXPECT_EQ(layer.layer, 1);
  EXPECT_EQ(layer.table.num_experts, 8);
  EXPECT_EQ(layer.table.top_k, 2);
  EXPECT_EQ(layer.table.num_tokens, 3);
  EXPECT_EQ(layer.table.expert_ids, (Ids{0, 1, 2, -1, 7, 3}));
  EXPECT_EQ(layer.table.weights, (Weights{0.75F, 0.25F, 1.0F, 0.0F, 0.5F, 0.5F}));
}

TEST_F(TraceReader, ReadsPlainAndGzip) {
  expect_layer_1(read_trace_layer(write(two_layers())));
  expect_layer_1(read_trace_layer(write(gzip(two_layers())), {.layer = 1}));
}

TEST_F(TraceReader, ReadsConcatenatedGzipMembers) {
  const std::string path = write(gzip(kLayer1) + gzip(kLayer2));
  expect_layer_1(read_trace_layer(path));
  EXPECT_EQ(read_trace_layer(path, {.layer = 2}).table.expert_ids, (Ids{4, 5, 6, 7}));
}

TEST_F(TraceReader, ReadsTheLayerAskedFor) {
  const std::string path = write(two_layers());
  EXPECT_EQ(read_trace_layer(path, {.layer = 2}).table.expert_ids, (Ids{4, 5, 6, 7}));
  EXPECT_EQ(read_trace_layer(path, {.layer = 2}).layer, 2);
}

TEST_F(TraceReader, KeepsAtMostMaxTokens) {
  const std::string path = write(two_layers());
  const RoutingTable two = read_trace_layer(path, {.layer = 1, .max_tokens = 2}).table;
  EXPECT_EQ(two.num_tokens, 2);
  EXPECT_EQ(two.expert_ids, (Ids{0, 1, 2, -1}));
  EXPECT_EQ(two.weights, (Weights{0.75F, 0.25F, 1.0F, 0.0F}));
  EXPECT_EQ(read_trace_layer(path, {.layer = 1, .max_tokens = 0}).table.num_tokens, 0);
  EXPECT_EQ(read_trace_layer(path, {.layer = 1, .max_tokens = 99}).table.num_tokens, 3);
}

TEST_F(TraceReader, TakesKeysInAnyOrderAndIgnoresOthers) {
  const std::string path =
      write(R"({"weights":[[1,2],[3,4]],"note":{"expert_ids":[["x"]],"layer":null},"expert_ids":[[4,5],[6,7]],)"
            R"("more":[1,[2,{"a":[]}],"b",true,1e5],"num_tokens":2,"layer":2,"top_k":2,"num_experts":8,"z":-1})"
            "\n" +
            std::string(kLayer1));
  const TraceLayer by_number = read_trace_layer(path, {.layer = 2, .max_tokens = 1});
  EXPECT_EQ(by_number.table.expert_ids, (Ids{4, 5}));
  EXPECT_EQ(by_number.table.weights, (Weights{1.0F, 2.0F}));
  EXPECT_EQ(read_trace_layer(path).table.expert_ids, (Ids{4, 5, 6, 7}));
  expect_layer_1(read_trace_layer(path, {.layer = 1}));
}

TEST_F(TraceReader, SkipsEmptyLinesAndTakesAnyLineEnd) {
  std::string text = "\n  \t\r\n" + std::string(kLayer1);
  text.insert(text.size() - 1, "\r");
  text += "\n\n" + std::string(kLayer2.substr(0, kLayer2.size() - 1));  // no newline at the end
  const std::string path = write(text);
  expect_layer_1(read_trace_layer(path));
  EXPECT_EQ(read_trace_layer(path, {.layer = 2}).table.num_tokens, 2);
}

TEST_F(TraceReader, AbsentWeightsAreOne) {
  const std::string path = write(R"({"layer":0,"num_experts":4,"top_k":2,"num_tokens":2,"expert_ids":[[0,1],[2,-1]]})");
  EXPECT_EQ(read_trace_layer(path, {.max_tokens = 1}).table.weights, (Weights{1.0F, 1.0F}));
  EXPECT_EQ(read_trace_layer(path).table.weights, Weights(4, 1.0F));
}

TEST_F(TraceReader, ReadsLayersWithoutTokens) {
  const TraceLayer layer =
      read_trace_layer(write(R"({"layer":5,"num_experts":4,"top_k":2,"num_tokens":0,"expert_ids":[],"weights":[]})"));
  EXPECT_EQ(layer.layer, 5);
  EXPECT_EQ(layer.table.num_tokens, 0);
  EXPECT_EQ(layer.table.top_k, 2);
}

// Lines longer than the reader's buffer, with boundaries of the buffer at every kind of place.
TEST_F(TraceReader, ReadsLongLines) {
  for (const std::int64_t num_tokens : {20000, 20001, 33333}) {
    std::string ids;
    for (std::int64_t token = 0; token < num_tokens; ++token) {
      ids += token > 0 ? ",[" : "[";
      ids += std::to_string(token % 999);
      ids += ",999]";
    }
    std::string line = R"({"layer":3,"num_experts":1000,"top_k":2,"num_tokens":)" + std::to_string(num_tokens);
    line.append(R"(,"expert_ids":[)").append(ids).append("]}\n");
    std::string text = line;
    std::string same_rows = line;
    same_rows.replace(same_rows.find("\"layer\":3"), 9, "\"layer\":4");
    text.append(kLayer1).append(same_rows).append(kLayer2);
    const std::string path = write(text);
    const RoutingTable table = read_trace_layer(path).table;
    ASSERT_EQ(table.num_tokens, num_tokens);
    for (std::int64_t token = 0; token < num_tokens; ++token) {
      ASSERT_EQ(table.expert_ids[static_cast<std::size_t>(2 * token)], token % 999);
    }
    expect_layer_1(read_trace_layer(path, {.layer = 1}));
    EXPECT_EQ(read_trace_layer(path, {.layer = 2}).table.num_tokens, 2);
  }
}

TEST_F(TraceReader, MissingLayersAndFilesAreNotFound) {
  const std::string path =
      write(two_layers() + R"({"layer":9,"num_experts":1,"top_k":1,"num_tokens":0,"expert_ids":[]})");
  expect_error(ErrorCode::kNotFound, {"layer 7", path, "1-2, 9"}, [&] { (void)read_trace_layer(path, {.layer = 7}); });
  const TempDir dir;
  expect_error(ErrorCode::kNotFound, {"absent.jsonl", "No such file"},
               [&] { (void)read_trace_layer(dir.file("absent.jsonl")); });
  expect_error(ErrorCode::kNotFound, {"directory"}, [&] { (void)read_trace_layer(dir.path().string()); });
  expect_error(ErrorCode::kNotFound, {"absent.jsonl"},
               [&] { summarize_trace(dir.file("absent.jsonl"), [](const TraceLayerSummary&) {}); });
}

TEST_F(TraceReader, MissingLayersAreToldInAFewWords) {
  std::string text;
  for (int layer = 0; layer < 60000; layer += 2) {  // no two of them follow each other
    text += R"({"num_experts":1,"top_k":1,"num_tokens":0,"expert_ids":[],"layer":)" + std::to_string(layer) + "}\n";
  }
  try {
    (void)read_trace_layer(write(text), {.layer = 1});
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_EQ(error.code(), ErrorCode::kNotFound);
    EXPECT_LT(message.size(), 400U);
    EXPECT_TRUE(message.ends_with("0, 2, 4, 6, 8, 10, 12, 14, 16, 18 and 29990 more")) << message;
  }
}

TEST_F(TraceReader, RejectsBadOptions) {
  const std::string path = write(two_layers());
  expect_error(ErrorCode::kInvalidArgument, {"-2"}, [&] { (void)read_trace_layer(path, {.layer = -2}); });
  expect_error(ErrorCode::kInvalidArgument, {"-2"}, [&] { (void)read_trace_layer(path, {.max_tokens = -2}); });
}

// generate_routing over traces.

RoutingTable generate(const std::string& path, const RoutingRequest& request) {
  return generate_routing(RoutingSpec::parse("trace:" + path), request);
}

/// Five tokens with expert ids 0 to 4, top 1, the keys that tell how many tokens there are before or after them.
std::string five_tokens(bool count_first) {
  const std::string count = R"("num_tokens":5)";
  const std::string rows = R"("expert_ids":[[0],[1],[2],[3],[4]],"weights":[[0],[1],[2],[3],[4]])";
  return R"({"layer":1,"num_experts":5,"top_k":1,)" + (count_first ? count + "," + rows : rows + "," + count) + "}\n";
}

TEST_F(TraceReader, RanksTakeConsecutiveTokensAndWrapRound) {
  for (const bool count_first : {true, false}) {
    const std::string path = write(five_tokens(count_first));
    for (const std::int64_t num_tokens : {0, 1, 2, 3, 4, 5, 6, 12}) {
      for (std::int32_t rank = 0; rank < 5; ++rank) {
        const RoutingTable table = generate(path, {.num_tokens = num_tokens, .rank = rank, .num_ranks = 5});
        ASSERT_EQ(table.num_tokens, num_tokens);
        ASSERT_EQ(table.expert_ids.size(), static_cast<std::size_t>(num_tokens));
        for (std::int64_t token = 0; token < num_tokens; ++token) {
          const std::int64_t expected = (rank * num_tokens + token) % 5;
          ASSERT_EQ(table.expert_ids[static_cast<std::size_t>(token)], expected)
              << "rank " << rank << " of " << num_tokens << " tokens, token " << token;
          ASSERT_EQ(table.weights[static_cast<std::size_t>(token)], static_cast<float>(expected));
        }
      }
    }
  }
}

TEST_F(TraceReader, GeneratedShapeIsTheTraces) {
  const std::string path = write(two_layers());
  const RoutingTable table = generate(path, {.num_tokens = 1, .trace_layer = 2});
  EXPECT_EQ(table.num_experts, 8);
  EXPECT_EQ(table.top_k, 2);
  EXPECT_EQ(table.expert_ids, (Ids{4, 5}));
  EXPECT_EQ(generate(path, {.num_tokens = 1, .num_experts = 8, .top_k = 2}).expert_ids, (Ids{0, 1}));
  expect_error(ErrorCode::kInvalidArgument, {"num_experts is 64", "recorded with 8"},
               [&] { (void)generate(path, {.num_tokens = 1, .num_experts = 64, .top_k = 2}); });
  expect_error(ErrorCode::kInvalidArgument, {"top_k is 6", "recorded with 2"},
               [&] { (void)generate(path, {.num_tokens = 1, .num_experts = 8, .top_k = 6}); });
  expect_error(ErrorCode::kNotFound, {"layer 3"}, [&] { (void)generate(path, {.num_tokens = 1, .trace_layer = 3}); });
  expect_error(ErrorCode::kInvalidArgument, {"-2"},
               [&] { (void)generate(path, {.num_tokens = 1, .trace_layer = -2}); });
}

TEST_F(TraceReader, LayersWithoutTokensGiveNone) {
  const std::string path = write(R"({"layer":1,"num_experts":4,"top_k":2,"num_tokens":0,"expert_ids":[]})");
  EXPECT_EQ(generate(path, {.num_tokens = 0}).num_tokens, 0);
  expect_error(ErrorCode::kInvalidArgument, {"no tokens"}, [&] { (void)generate(path, {.num_tokens = 1}); });
}

}  // namespace
}  // namespace epistle
