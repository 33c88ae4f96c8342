// `epistle bench --placement`: experts that have replicas.
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/bench_run.hpp"

namespace epistle::test {
namespace {

TEST(BenchPlacement, ReplicasAreVerifiedByEveryDispatcher) {
  for (const char* const layout : {"token_major", "expert_major"}) {
    const auto json = bench_json({"--placement", "replicas:2", "--ranks", "3", "--layout", layout, "--dispatcher",
                                  "direct,low_latency,alltoall,reference"});
    EXPECT_EQ(json.at("verification"), "passed");
    EXPECT_EQ(json.at("config").at("placement"), "replicas:2");
    for (const auto& buffers : json.at("buffers")) EXPECT_EQ(buffers.at("as_predicted"), true) << buffers;
  }
  EXPECT_EQ(bench_json({"--ranks", "2"}).at("config").at("placement"), nullptr);
}

TEST(BenchPlacement, AFileSaysWhereExpertsLie) {
  const TempDir dir;
  const std::string path =
      dir.write("placement.json", R"({"slot_experts": [[0, 1, 2, 3, 4, 5], [], [6, 7, 8, 9, 10, 11, 0]],
    "quotas": [[1, 1, 1, 1, 1, 1], [], [1, 1, 1, 1, 1, 1, 3]], "near_first": true, "domain_of_rank": [0, 0, 1],
    "max_imbalance": 0.1})");
  const CommandResult result = run_bench({"--placement", path, "--ranks", "3"});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_TRUE(has_line_starting_with(result.out, "placement " + path + ": 13 slots on 3 ranks, 7 at most on one"))
      << result.out;
  EXPECT_TRUE(split_lines(result.out).back().starts_with("verified: every output bit")) << result.out;
}

TEST(BenchPlacement, WhatIsNoneIsRefused) {
  const TempDir dir;
  struct Wrong {
    std::string text;
    std::string part;
  };
  for (const Wrong& wrong : std::vector<Wrong>{
           {R"({"slots": []})", "slot_experts"},
           {R"({"slot_experts": [[0, 1], [2]]})", "expert 3 has no slot"},
           {R"({"slot_experts": [[0, 0], [1]]})", "two slots for expert 0"},
           {R"({"slot_experts": [[0.5]]})", "slot_experts[0][0]"},
           {R"({"slot_experts": [[0]], "quotas": [[-1]]})", "quotas[0][0]"},
           {"{", "placement.json"},
       }) {
    const CommandResult result = run_bench({"--placement", dir.write("placement.json", wrong.text), "--ranks", "2"});
    EXPECT_EQ(result.exit_code, 3) << result.describe();
    EXPECT_TRUE(is_error_line(result.err, wrong.part)) << wrong.part << result.describe();
  }
  const auto expect_error = [](const std::string& spec, int exit_code, const std::string& part) {
    const CommandResult result = run_bench({"--placement", spec, "--ranks", "2"});
    EXPECT_EQ(result.exit_code, exit_code) << result.describe();
    EXPECT_TRUE(is_error_line(result.err, part)) << part << result.describe();
  };
  expect_error("replicas:7", 2, "from 0 to 6");
  expect_error("replicas:x", 2, "replicas:x");
  expect_error(dir.file("missing.json"), 3, "missing.json");
  // Of two ranks, where the run has three.
  const std::string two =
      dir.write("placement.json", R"({"slot_experts": [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]})");
  const CommandResult result = run_bench({"--placement", two, "--ranks", "3"});
  EXPECT_EQ(result.exit_code, 2) << result.describe();
  EXPECT_TRUE(is_error_line(result.err, "is for 2 ranks")) << result.describe();
}

}  // namespace
}  // namespace epistle::test
