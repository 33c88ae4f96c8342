// What `epistle bench` prints and writes when all is well.
#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/bench_run.hpp"

namespace epistle::test {
namespace {

using Json = nlohmann::json;

const std::vector<std::string> kPhases = {"layout", "dispatch", "combine", "round_trip"};

TEST(Bench, TableShowsEveryPhaseOfEveryDispatcher) {
  const CommandResult result = run_bench({"--dispatcher", "alltoall,direct", "--ranks", "3"});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_EQ(result.err, "");  // no progress bar in a pipe
  const auto lines = split_lines(result.out);
  EXPECT_EQ(lines.front(),
            "custom shape: hidden 64, 12 experts, top-3; 3 threads of 20 tokens each; bf16, token_major, routing "
            "uniform");
  EXPECT_NE(result.out.find("memory-copy limit "), std::string::npos);
  EXPECT_NE(result.out.find("3 threads at once"), std::string::npos);
  const auto header =
      std::find_if(lines.begin(), lines.end(), [](const std::string& line) { return line.starts_with("dispatcher"); });
  ASSERT_NE(header, lines.end()) << result.out;
  for (const char* const column : {"phase", "median", "p99", "algorithm bytes", "rate", "wire bytes", "of limit"}) {
    EXPECT_NE(header->find(column), std::string::npos) << column;
  }
  // In the order asked for, below the header and its rule.
  auto row = header + 2;
  for (const char* const dispatcher : {"alltoall", "direct"}) {
    for (const std::string& phase : kPhases) {
      ASSERT_NE(row, lines.end());
      EXPECT_TRUE(row->starts_with(dispatcher)) << *row;
      EXPECT_NE(row->find(" " + phase + " "), std::string::npos) << *row;
      EXPECT_TRUE(row->ends_with("%")) << *row;
      EXPECT_EQ(row->find("B/s") != std::string::npos, phase != "layout") << *row;
      ++row;
    }
  }
  EXPECT_TRUE(has_line_starting_with(result.out, "load per rank, max/mean: rows 1.")) << result.out;
  EXPECT_TRUE(has_line_starting_with(result.out, "buffers of alltoall: ")) << result.out;
  EXPECT_TRUE(has_line_starting_with(result.out, "buffers of direct: ")) << result.out;
  EXPECT_EQ(result.out.find("NOT what the layout predicts"), std::string::npos) << result.out;
  EXPECT_TRUE(lines.back().starts_with("verified: every output bit equals the reference (")) << lines.back();
  EXPECT_TRUE(lines.back().ends_with("on 3 ranks)")) << lines.back();
}

TEST(Bench, WithoutVerificationItSaysSo) {
  const CommandResult result = run_bench({"--no-verify"});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_EQ(split_lines(result.out).back(), "not verified (--no-verify)");
  const Json json = bench_json({"--no-verify"});
  EXPECT_EQ(json.at("verified"), false);
  EXPECT_EQ(json.at("verification"), "off");
  EXPECT_TRUE(json.at("mismatch").is_null());
}

TEST(Bench, EveryOrderOfSumsIsVerified) {
  for (const char* const order : {"hierarchical", "flat", "deepep_v2"}) {
    const Json json = bench_json({"--ranks", "3", "--combine", order, "--layout", "expert_major"});
    EXPECT_EQ(json.at("verified"), true) << order;
    EXPECT_EQ(json.at("config").at("combine"), order);
  }
}

TEST(Bench, EveryWireIsVerifiedAndSaysItsBytes) {
  // Of a row of 64 elements with its scales.
  const std::vector<std::pair<std::string, int>> wires = {
      {"as-given", 128}, {"fp8", 68}, {"fp8-pow2", 68}, {"fp8-ue8m0", 68}, {"fp8-columns", 68}};
  double num_rows = 0.0;  // the same, however they travel
  for (const auto& [wire, row_bytes] : wires) {
    const Json json = bench_json({"--ranks", "2", "--dispatcher", "direct,low_latency,alltoall,reference", "--wire",
                                  wire, "--layout", "expert_major"});
    EXPECT_EQ(json.at("verified"), true) << wire;
    EXPECT_EQ(json.at("config").at("wire"), wire);
    for (const Json& result : json.at("results")) {
      if (result.at("phase") != "dispatch") continue;
      const double rows = result.at("algorithm_bytes").get<double>() / row_bytes;
      if (num_rows == 0.0) num_rows = rows;
      EXPECT_NEAR(rows, num_rows, 0.1) << wire;
    }
  }
  const CommandResult text = run_bench({"--wire", "fp8-pow2"});
  EXPECT_NE(text.out.find("bf16, wire fp8-pow2, token_major"), std::string::npos) << text.describe();
}

TEST(Bench, JsonHasConfigurationMachineVersionsAndResults) {
  const Json json = bench_json({"--ranks", "2", "--dtype", "fp16", "--layout", "expert_major", "--alignment", "8",
                                "--combine", "flat", "--weights", "off", "--seed", "9"});
  ASSERT_TRUE(json.is_object());
  EXPECT_EQ(json.at("tool"), "epistle bench");
  EXPECT_EQ(json.at("verified"), true);
  EXPECT_EQ(json.at("verification"), "passed");
  EXPECT_GT(json.at("verified_bytes"), 0);
  EXPECT_GT(json.at("limit_bytes_per_s").get<double>(), 0.0);
  const Json expected = {{"hidden", 64},       {"num_experts", 12}, {"top_k", 3},        {"dtype", "fp16"},
                         {"alignment", 8},     {"combine", "flat"}, {"weights", false},  {"layout", "expert_major"},
                         {"group", "threads"}, {"ranks", 2},        {"tokens", 20},      {"iterations", 2},
                         {"warmups", 0},       {"seed", 9},         {"workers", 1},      {"routing", "uniform"},
                         {"device", "host"},   {"model", nullptr},  {"wire", "as-given"}};
  for (const auto& [name, value] : expected.items()) EXPECT_EQ(json.at("config").at(name), value) << name;
  for (const char* const name : {"cpu", "architecture", "kernel", "host", "memory_bytes", "cores"}) {
    EXPECT_TRUE(json.at("machine").contains(name)) << name;
  }
  for (const char* const name : {"epistle", "compiler", "build_type", "simd", "fmt", "highway", "hwloc"}) {
    EXPECT_FALSE(json.at("versions").at(name).get<std::string>().empty()) << name;
  }
  EXPECT_GE(json.at("load").at("rows_max_over_mean").get<double>(), 1.0);
  for (const Json& buffers : json.at("buffers")) {
    EXPECT_GT(buffers.at("max_buffer_bytes"), 0);
    EXPECT_EQ(buffers.at("as_predicted"), true);
  }
}

TEST(Bench, JsonResultsAreConsistent) {
  const Json json = bench_json({"--ranks", "2", "--dispatcher", "direct,alltoall"});
  std::set<std::pair<std::string, std::string>> seen;
  for (const Json& result : json.at("results")) {
    const std::string phase = result.at("phase");
    seen.insert({result.at("dispatcher"), phase});
    const double median_us = result.at("median_us");
    EXPECT_GT(median_us, 0.0);
    EXPECT_LE(result.at("min_us").get<double>(), median_us);
    EXPECT_LE(median_us, result.at("p99_us").get<double>());
    EXPECT_LE(result.at("p99_us").get<double>(), result.at("max_us").get<double>());
    EXPECT_GT(result.at("limit_fraction").get<double>(), 0.0);
    EXPECT_LE(result.at("wire_bytes"), result.at("algorithm_bytes"));
    if (phase == "layout") continue;
    EXPECT_GT(result.at("algorithm_bytes"), 0);
    EXPECT_GT(result.at("wire_bytes"), 0);
    const double rate = result.at("algorithm_bytes").get<double>() / median_us * 1e6;
    EXPECT_NEAR(result.at("algorithm_bytes_per_s").get<double>() / rate, 1.0, 1e-9);
  }
  EXPECT_EQ(seen.size(), 2 * kPhases.size());
  EXPECT_EQ(json.at("results").size(), seen.size());
}

TEST(Bench, BytesFollowFromTheRouting) {
  // Every token goes to both ranks: 4 experts on 2 ranks, top-4.
  const CommandResult result =
      run_epistle({"bench", "--hidden", "64", "--experts", "4", "--top-k", "4", "--tokens", "10", "--ranks", "2",
                   "--iters", "1", "--warmup", "0", "--dispatcher", "direct", "--json", "-"});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  const Json record = Json::parse(result.out);
  for (const Json& phase : record.at("results")) {
    if (phase.at("phase") != "dispatch" && phase.at("phase") != "combine") continue;
    EXPECT_EQ(phase.at("algorithm_bytes"), 2 * 10 * 64 * 2);
    EXPECT_EQ(phase.at("wire_bytes"), 10 * 64 * 2);
  }
}

TEST(Bench, JsonFileComesWithTheTable) {
  const TempDir dir;
  const CommandResult result = run_bench({"--json", dir.file("out.json")});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_TRUE(has_line_starting_with(result.out, "verified: ")) << result.out;
  EXPECT_EQ(Json::parse(read_file(dir.file("out.json"))).at("verified"), true);
}

TEST(Bench, ListNamesTheDispatchers) {
  const CommandResult result = run_epistle({"bench", "--list"});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  for (const char* const name : {"direct ", "alltoall ", "reference "}) {
    EXPECT_TRUE(has_line_starting_with(result.out, name)) << result.out;
  }
}

TEST(Bench, EveryModelRuns) {
  const CommandResult list = run_epistle({"models", "--json", "-"});
  ASSERT_EQ(list.exit_code, 0) << list.describe();
  const Json parsed = Json::parse(list.out);
  const Json& models = parsed.is_array() ? parsed : parsed.at("models");
  ASSERT_GE(models.size(), 25U);
  for (const Json& model : models) {
    const std::string name = model.at("name");
    const CommandResult result = run_epistle({"bench", "--model", name, "--tokens", "3", "--iters", "1", "--warmup",
                                              "0", "--dispatcher", "direct", "--routing", "forced-random"});
    EXPECT_EQ(result.exit_code, 0) << name << result.describe();
    EXPECT_TRUE(result.out.starts_with(name + ": hidden " + std::to_string(model.at("hidden").get<int>())))
        << result.out;
    EXPECT_TRUE(has_line_starting_with(result.out, "verified: ")) << result.out;
  }
}

TEST(Bench, RouterCapacityDropsAndPads) {
  const Json dropped = bench_json({"--routing", "zipf:1.5", "--drop-capacity", "1.0", "--drop-policy", "position"});
  EXPECT_EQ(dropped.at("config").at("router_capacity"), 5);  // 20 tokens x 3 of 12 experts
  EXPECT_GT(dropped.at("config").at("router_dropped"), 0);
  EXPECT_EQ(dropped.at("load").at("dropped"), 0);
  const Json padded = bench_json({"--ranks", "2", "--routing", "zipf:1.5", "--drop-capacity", "1.0", "--layout",
                                  "expert_blocks", "--pad-to-capacity"});
  EXPECT_EQ(padded.at("config").at("capacity_rows"), 10);
  EXPECT_EQ(padded.at("load").at("dropped"), 0);
  EXPECT_GT(padded.at("load").at("padding_rows"), 0);
}

TEST(Bench, OutputCapacityDropsAndCounts) {
  const CommandResult result = run_bench({"--sizing", "capacity", "--capacity-rows", "5", "--overflow", "drop"});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_TRUE(has_line_starting_with(result.out, "over the output capacity: ")) << result.out;
  EXPECT_TRUE(has_line_starting_with(result.out, "verified: ")) << result.out;
}

TEST(Bench, NoTokensAtAll) {
  for (const char* const group : {"threads", "processes"}) {
    const CommandResult result = run_epistle(
        {"bench", "--tokens", "0", "--hidden", "64", "--ranks", "3", "--iters", "1", "--group", group, "--json", "-"});
    ASSERT_EQ(result.exit_code, 0) << result.describe();
    const Json json = Json::parse(result.out);
    EXPECT_EQ(json.at("verified"), true);
    for (const Json& phase : json.at("results")) EXPECT_EQ(phase.at("algorithm_bytes"), 0);
  }
}

// ---- Traces ---------------------------------------------------------------------------------------------------------

// Layer 4 has three tokens, of which two ranks with two tokens each take the first one twice.
constexpr const char* kTraceOfOneLayer =
    "{\"layer\":2,\"num_experts\":8,\"top_k\":2,\"num_tokens\":1,\"expert_ids\":[[0,1]],\"weights\":[[0.5,0.5]]}\n"
    "{\"layer\":4,\"num_experts\":4,\"top_k\":2,\"num_tokens\":3,"
    "\"expert_ids\":[[0,1],[0,3],[0,-1]],\"weights\":[[0.5,0.5],[0.75,0.25],[1.0,0.0]]}\n";

CommandResult bench_trace(const TempDir& dir, const std::vector<std::string>& options) {
  std::vector<std::string> arguments = {"bench",    "--routing", "trace:" + dir.write("t.jsonl", kTraceOfOneLayer),
                                        "--tokens", "2",         "--iters",
                                        "1",        "--hidden",  "32"};
  arguments.insert(arguments.end(), options.begin(), options.end());
  return run_epistle(arguments);
}

TEST(BenchTrace, BringsItsExperts) {
  const TempDir dir;
  for (const char* const group : {"threads", "processes"}) {
    const CommandResult result = bench_trace(dir, {"--layer", "4", "--group", group, "--json", "-"});
    ASSERT_EQ(result.exit_code, 0) << result.describe();
    const Json json = Json::parse(result.out);
    EXPECT_EQ(json.at("verified"), true);
    EXPECT_EQ(json.at("config").at("num_experts"), 4);
    EXPECT_EQ(json.at("config").at("top_k"), 2);
    EXPECT_EQ(json.at("config").at("trace_layer"), 4);
    // Rank 0 gets all four tokens, rank 1 (experts 2 and 3) only the second: (4 + 1) / 2 ranks x 64 bytes.
    for (const Json& phase : json.at("results")) {
      if (phase.at("phase") != "dispatch") continue;
      EXPECT_EQ(phase.at("algorithm_bytes"), 5 * 64 / 2);
    }
  }
}

TEST(BenchTrace, TakesTheFirstLayerUnlessToldOtherwise) {
  const TempDir dir;
  const CommandResult result = bench_trace(dir, {});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_TRUE(result.out.starts_with("custom shape: hidden 32, 8 experts, top-2;")) << result.out;
}

TEST(BenchTrace, MissingLayersAndFilesAreNotFound) {
  const TempDir dir;
  for (const char* const group : {"threads", "processes"}) {
    const CommandResult layer = bench_trace(dir, {"--layer", "3", "--group", group});
    EXPECT_EQ(layer.exit_code, 3);
    EXPECT_TRUE(is_error_line(layer.err, "2, 4")) << layer.err;
    const CommandResult file = run_bench({"--routing", "trace:" + dir.file("none"), "--group", group});
    EXPECT_EQ(file.exit_code, 3);
    EXPECT_TRUE(is_error_line(file.err, "none")) << file.err;
  }
}

TEST(BenchTrace, MustAgreeWithTheShapeAskedFor) {
  const TempDir dir;
  const CommandResult experts = bench_trace(dir, {"--experts", "5"});
  EXPECT_EQ(experts.exit_code, 2);
  EXPECT_TRUE(is_error_line(experts.err, "--experts")) << experts.err;
  const CommandResult model = bench_trace(dir, {"--model", "qwen3-30b-a3b"});
  EXPECT_EQ(model.exit_code, 2);
  EXPECT_TRUE(is_error_line(model.err, "--model")) << model.err;
}

}  // namespace
}  // namespace epistle::test
