// Damaged traces: each must be refused with the line and the reason, by the reader and by the summary alike.
#include <gtest/gtest.h>

#include "epistle/trace.hpp"

#include "support/trace_files.hpp"

namespace epistle {
namespace {

using test::expect_error;
using test::gzip;
using test::TempDir;

constexpr std::string_view kGood =
    R"({"layer":1,"num_experts":8,"top_k":2,"num_tokens":2,"expert_ids":[[0,1],[2,3]],"weights":[[1,2],[3,4]]})"
    "\n";

struct BadLine {
  const char* text;
  const char* reason;
};

constexpr BadLine kBadLines[] = {
    {R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":2,"expert_ids":[[0,8],[2,3]]})", "expert id 8"},
    {R"({"layer":2,"top_k":2,"num_tokens":2,"expert_ids":[[0,8],[2,3]],"num_experts":8})", "expert id 8"},
    {R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":2,"expert_ids":[[0,-2],[2,3]]})", "expert id -2"},
    {R"({"layer":2,"top_k":2,"num_tokens":1,"expert_ids":[[0,99999999999]],"num_experts":8})", "expert id 99999999999"},
    {R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":1,"expert_ids":[[0,18446744073709551615]]})", "64-bit"},
    {R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":2,"expert_ids":[[0,1],[3,3]]})",
     "token 1 names expert 3 twice"},
    {R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":2,"expert_ids":[[0,1],[2]]})", "token 1 has 1 entries"},
    {R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":2,"expert_ids":[[0,1],[2,3,4]]})", "more than 2"},
    {R"({"layer":2,"num_experts":8,"num_tokens":2,"expert_ids":[[0,1],[2,3,4]],"top_k":2})", "more than 2"},
    {R"({"layer":2,"num_experts":8,"num_tokens":2,"expert_ids":[[0,1,4],[2,3,4]],"top_k":2})", "rows have 3"},
    {R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":2,"expert_ids":[[0,1]]})", "has 1 rows"},
    {R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":1,"expert_ids":[[0,1],[2,3]]})", "more rows"},
    {R"({"layer":2,"num_experts":8,"top_k":2,"expert_ids":[[0,1],[2,3]],"num_tokens":1})", "has 2 rows"},
    {R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":1,"expert_ids":[[0,1]],"weights":[]})", "\"weights\" has 0"},
    {R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":1,"expert_ids":[[0,1]],"weights":[[1]]})", "1 entries"},
    {R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":1,"expert_ids":[[0,1]],"weights":[["1",1]]})", "a string"},
    {R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":1,"expert_ids":[[0,1]],"weights":[[1e39,1]]})", "fp32"},
    {R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":1,"expert_ids":[[0,1]],"weights":[[1e999,1]]})", "1e999"},
    {R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":1,"expert_ids":[[0,1]],"weights":[[NaN,1]]})", "near"},
    {R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":1,"expert_ids":[[0,1.0]]})", "expected an integer"},
    {R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":1,"expert_ids":[[0,null]]})", "found null"},
    {R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":1,"expert_ids":[0,1]})", "expected a row"},
    {R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":1,"expert_ids":[[[0],1]]})", "found an array"},
    {R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":1,"expert_ids":{"0":1}})", "found an object"},
    {R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":1,"expert_ids":7})", "array of rows"},
    {R"({"layer":2,"num_experts":8,"top_k":"2","num_tokens":1,"expert_ids":[[0,1]]})", "\"top_k\""},
    {R"({"layer":2,"num_experts":8,"top_k":[2],"num_tokens":1,"expert_ids":[[0,1]]})", "\"top_k\""},
    {R"({"layer":-1,"num_experts":8,"top_k":2,"num_tokens":1,"expert_ids":[[0,1]]})", "\"layer\" is -1"},
    {R"({"layer":2,"num_experts":0,"top_k":2,"num_tokens":1,"expert_ids":[[0,1]]})", "\"num_experts\" is 0"},
    {R"({"layer":2,"num_experts":4000000000,"top_k":2,"num_tokens":1,"expert_ids":[[0,1]]})", "\"num_experts\" is 4"},
    {R"({"layer":2,"num_experts":8,"top_k":0,"num_tokens":1,"expert_ids":[[]]})", "\"top_k\" is 0"},
    {R"({"layer":2,"num_experts":1,"top_k":2,"num_tokens":1,"expert_ids":[[0,-1]]})", "at most \"num_experts\" = 1"},
    {R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":-1,"expert_ids":[]})", "\"num_tokens\" is -1"},
    {R"({"num_experts":8,"top_k":2,"num_tokens":1,"expert_ids":[[0,1]]})", "\"layer\" is missing"},
    {R"({"layer":2,"top_k":2,"num_tokens":1,"expert_ids":[[0,1]]})", "\"num_experts\" is missing"},
    {R"({"layer":2,"num_experts":8,"num_tokens":1,"expert_ids":[[0,1]]})", "\"top_k\" is missing"},
    {R"({"layer":2,"num_experts":8,"top_k":2,"expert_ids":[[0,1]]})", "\"num_tokens\" is missing"},
    {R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":1,"weights":[[0,1]]})", "\"expert_ids\" is missing"},
    {R"({"layer":2,"layer":2,"num_experts":8,"top_k":2,"num_tokens":1,"expert_ids":[[0,1]]})", "stands twice"},
    {R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":1,"expert_ids":[[0,1]],"expert_ids":[]})", "stands twice"},
    {R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":1,"expert_ids":[[0,1]]} x)", "not one whole JSON object"},
    {R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":1,"expert_ids":[[0,1)", "not one whole JSON object"},
    {R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":1,"expert_ids":[[0,1]]}{})", "not one whole JSON object"},
    {R"({})", "is missing"},
    {R"([1,2])", "expected one object per line"},
    {R"(17)", "expected one object per line"},
    {R"(layer 2)", "not one whole JSON object"},
};

class TraceCorrupt : public ::testing::Test {
 protected:
  [[nodiscard]] std::string write(std::string_view content) const { return dir_.write("trace.jsonl", content); }

 private:
  TempDir dir_;
};

void expect_corrupt(const std::string& path, const std::vector<std::string>& parts) {
  expect_error(ErrorCode::kCorruptInput, parts, [&] { (void)read_trace_layer(path, {.layer = 2}); });
  expect_error(ErrorCode::kCorruptInput, parts, [&] { summarize_trace(path, [](const TraceLayerSummary&) {}); });
}

TEST_F(TraceCorrupt, BadLinesAreNamed) {
  for (const BadLine& bad : kBadLines) {
    SCOPED_TRACE(bad.text);
    const std::string text = std::string(kGood) + "\n" + bad.text + "\n" + std::string(kGood);
    expect_corrupt(write(text), {"line 3", bad.reason});
    expect_corrupt(write(gzip(text)), {"line 3", bad.reason});
  }
}

TEST_F(TraceCorrupt, DeepNestingIsRefused) {
  const std::string line = R"({"layer":2,"extra":)" + std::string(100000, '[');
  expect_corrupt(write(std::string(kGood) + line), {"line 2", "nest deeper"});
}

TEST_F(TraceCorrupt, TruncatedGzipIsRefusedWithItsLine) {
  const std::string text = std::string(kGood) + R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":9,"expert_ids":[)";
  std::string rows;
  std::uint32_t state = 1;
  for (int row = 0; row < 50000; ++row) {
    state = state * 1664525 + 1013904223;  // rows that do not compress to nothing
    const std::uint32_t id = (state >> 16) % 7;
    rows += (row > 0 ? ",[" : "[") + std::to_string(id) + "," + std::to_string(id + 1) + "]";
  }
  std::string long_text = text + rows + "]}\n";
  long_text.replace(long_text.find("\"num_tokens\":9"), 14, "\"num_tokens\":50000");
  const std::string whole = gzip(long_text);
  for (const std::size_t kept : {whole.size() / 2, whole.size() - 20, whole.size() - 8, whole.size() - 1}) {
    SCOPED_TRACE(kept);
    const std::string path = write(whole.substr(0, kept));
    // Without the last bytes the line may be whole, and only the checksum is gone: the summary, which reads on, says
    // so.
    expect_error(ErrorCode::kCorruptInput, {"line 2", "truncated"},
                 [&] { summarize_trace(path, [](const TraceLayerSummary&) {}); });
  }
  expect_corrupt(write(whole.substr(0, whole.size() / 2)), {"line 2", "truncated"});
}

TEST_F(TraceCorrupt, DamagedGzipIsRefused) {
  std::string packed = gzip(kGood);
  packed[packed.size() - 6] = static_cast<char>(packed[packed.size() - 6] ^ 0x55);  // in the checksum
  const std::string path = write(packed);
  expect_error(ErrorCode::kCorruptInput, {"damaged"}, [&] { summarize_trace(path, [](const TraceLayerSummary&) {}); });
  packed = gzip(kGood);
  packed.replace(10, 8, 8, '\xff');  // the first block
  expect_error(ErrorCode::kCorruptInput, {"line 1", "damaged"}, [&] { (void)read_trace_layer(write(packed)); });
}

TEST_F(TraceCorrupt, TruncatedPlainFileIsRefused) {
  const std::string two =
      std::string(kGood) + R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":2,"expert_ids":[[0,1],)";
  expect_corrupt(write(two), {"line 2", "not one whole JSON object"});
}

// Whatever the layer wanted: a file that is damaged behind it was not recorded as it should have been.
TEST_F(TraceCorrupt, DamageBehindTheLayerIsRefused) {
  const std::string good(kGood);
  for (const std::string& tail :
       {std::string("damage\n"), std::string(R"({"layer":2,"num_experts":8,"top_k":2,"num_tok)"),
        std::string(R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":1,"expert_ids":[[0,1],)"),
        std::string(R"({"num_experts":8,"layer":2)")}) {
    SCOPED_TRACE(tail);
    const std::string path = write(good + tail);
    expect_error(ErrorCode::kCorruptInput, {"line 2"}, [&] { (void)read_trace_layer(path); });
    int num_layers = 0;
    expect_error(ErrorCode::kCorruptInput, {"line 2"},
                 [&] { summarize_trace(path, [&](const TraceLayerSummary&) { ++num_layers; }); });
    EXPECT_EQ(num_layers, 1);
  }
}

TEST_F(TraceCorrupt, LinesThatEndWithTheLayerAreWhole) {
  const std::string path =
      write(std::string(kGood) + R"({"num_experts":8,"top_k":2,"num_tokens":1,"expert_ids":[[0,1]],"layer":2} )");
  EXPECT_EQ(read_trace_layer(path).layer, 1);
  EXPECT_EQ(read_trace_layer(path, {.layer = 2}).table.num_tokens, 1);
}

void expect_refused(const std::string& path, const std::vector<std::string>& parts) {
  expect_error(ErrorCode::kCorruptInput, parts, [&] { (void)read_trace_layer(path); });
  expect_error(ErrorCode::kCorruptInput, parts, [&] { (void)read_trace_layer(path, {.layer = 1}); });
  expect_error(ErrorCode::kCorruptInput, parts, [&] { summarize_trace(path, [](const TraceLayerSummary&) {}); });
}

TEST_F(TraceCorrupt, LayersThatStandTwiceAreRefused) {
  const std::string good(kGood);
  std::string other = good;
  other.replace(other.find("\"layer\":1"), 9, "\"layer\":2");
  expect_refused(write(good + "\n" + other + good), {"line 4", "layer 1 stands in line 1 already"});
  expect_refused(write(good + other + other), {"line 3", "layer 2 stands in line 2 already"});
  expect_refused(write(gzip(good) + gzip(good)), {"line 2", "layer 1 stands in line 1 already"});
}

TEST_F(TraceCorrupt, MoreLayersThanAnyModelHasAreRefused) {
  std::string text;
  for (int layer = 0; layer <= 65536; ++layer) {
    text +=
        R"({"layer":)" + std::to_string(layer) + R"(,"num_experts":1,"top_k":1,"num_tokens":0,"expert_ids":[]})" + "\n";
  }
  expect_refused(write(text), {"line 65537", "more than 65536 layers"});
}

TEST_F(TraceCorrupt, FilesWithoutLayersAreRefused) {
  for (const std::string& text : {std::string(), gzip(""), std::string("\n\n  \n"), gzip(" \n"), gzip("") + gzip("")}) {
    expect_refused(write(text), {"holds no layers"});
  }
}

TEST_F(TraceCorrupt, WhatFollowsGzipDataIsGzip) {
  const std::string first = gzip(kGood);
  std::string second = gzip(R"({"layer":2,"num_experts":8,"top_k":2,"num_tokens":0,"expert_ids":[]})");
  EXPECT_EQ(read_trace_layer(write(first + second), {.layer = 2}).table.num_tokens, 0);
  for (const std::size_t damaged : {0U, 1U, 2U}) {
    std::string packed = second;
    packed[damaged] = static_cast<char>(packed[damaged] ^ 0x55);
    expect_refused(write(first + packed), {"damaged or foreign bytes follow the gzip data"});
  }
  for (const std::string& tail : {std::string("x"), std::string(kGood), std::string(512, '\0')}) {
    expect_refused(write(first + tail), {"damaged or foreign bytes follow the gzip data"});
  }
  for (std::size_t kept = 1; kept < second.size(); ++kept) {
    expect_refused(write(first + second.substr(0, kept)), {"the file is truncated"});
  }
}

TEST_F(TraceCorrupt, LongTokensAreRefused) {
  const std::string head = R"({"layer":1,"num_experts":8,"top_k":2,"num_tokens":0,"expert_ids":[],)";
  const auto line = [&](std::size_t length, char what) {
    const std::string run(length, what);
    if (what == 'k') return head + "\"" + run + "\":1}";
    if (what == '1') return head + "\"note\":" + run + "}";
    if (what == ' ') return head + run + "\"note\":1}";
    if (what == '\\') return head + "\"note\":\"" + run + "\"}";
    return head + "\"note\":\"" + run + "\"}";
  };
  for (const char what : {'k', '1', ' ', 's', '\\'}) {
    SCOPED_TRACE(what);
    expect_refused(write(line(70000, what)), {"line 1", "longer than 65536 bytes"});
    if (what == '1') continue;  // a number of as many digits is out of range
    summarize_trace(write(line(60000, what)), [](const TraceLayerSummary&) {});
  }
}

}  // namespace
}  // namespace epistle
