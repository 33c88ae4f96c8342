// Ranks of `epistle bench` with different token counts.
#include <algorithm>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/bench_run.hpp"

namespace epistle::test {
namespace {

using Counts = std::vector<std::int64_t>;

/// A small shape without --tokens.
std::vector<std::string> arguments_with(const std::vector<std::string>& options) {
  std::vector<std::string> arguments = {"bench", "--hidden", "64", "--experts", "12", "--top-k",
                                        "3",     "--iters",  "2",  "--warmup",  "0"};
  arguments.insert(arguments.end(), options.begin(), options.end());
  return arguments;
}

nlohmann::json json_of(std::vector<std::string> options) {
  options.insert(options.end(), {"--json", "-"});
  const CommandResult result = run_epistle(arguments_with(options));
  EXPECT_EQ(result.exit_code, 0) << ::testing::PrintToString(options) << result.describe();
  return nlohmann::json::parse(result.out, nullptr, false);
}

TEST(BenchTokens, DifferFromRankToRank) {
  for (const std::string group : {"threads", "processes"}) {
    for (const std::string layout : {"token_major", "expert_major"}) {
      for (const std::string routing : {"uniform", "balanced", "zipf:1.2", "forced-random"}) {
        const auto json = json_of({"--tokens", "51,0,17", "--ranks", "3", "--group", group, "--layout", layout,
                                   "--routing", routing, "--dispatcher", "direct,alltoall,reference"});
        SCOPED_TRACE(group + " " + layout + " " + routing);
        ASSERT_TRUE(json.is_object());
        EXPECT_EQ(json.at("verified"), true);
        EXPECT_EQ(json.at("config").at("tokens"), 51);
        EXPECT_EQ(json.at("config").at("tokens_per_rank"), (Counts{51, 0, 17}));
        EXPECT_EQ(json.at("config").at("ranks"), 3);
      }
    }
  }
}

TEST(BenchTokens, BalancedCountsThemOverAllRanks) {
  // 4 experts on 2 ranks, top-1: 40 tokens are 10 for every expert and 20 for every rank, however they are spread.
  for (const std::string tokens : {"20", "39,1", "0,40"}) {
    const CommandResult result =
        run_epistle({"bench", "--hidden", "64", "--experts", "4", "--top-k", "1", "--tokens", tokens, "--ranks", "2",
                     "--iters", "1", "--routing", "balanced", "--dispatcher", "direct", "--json", "-"});
    ASSERT_EQ(result.exit_code, 0) << result.describe();
    EXPECT_EQ(nlohmann::json::parse(result.out).at("load").at("assignments_max_over_mean"), 1.0) << tokens;
  }
}

TEST(BenchTokens, TheTableNamesThem) {
  const CommandResult few = run_epistle(arguments_with({"--tokens", "51,0,17"}));
  ASSERT_EQ(few.exit_code, 0) << few.describe();
  EXPECT_NE(few.out.find("; 3 threads of 51, 0, 17 tokens; bf16"), std::string::npos) << few.out;
  const CommandResult many = run_epistle(arguments_with({"--tokens", "9,1,1,1,1,1,1,1,2", "--dispatcher", "direct"}));
  ASSERT_EQ(many.exit_code, 0) << many.describe();
  EXPECT_NE(many.out.find("; 9 threads of 1 to 9 tokens each (18 in all); bf16"), std::string::npos) << many.out;
  const CommandResult equal = run_epistle(arguments_with({"--tokens", "5,5"}));
  EXPECT_NE(equal.out.find("; 2 threads of 5 tokens each; bf16"), std::string::npos) << equal.describe();
}

TEST(BenchTokens, ASpreadIsDrawnFromTheSeed) {
  const auto counts = [](std::vector<std::string> options) {
    options.insert(options.end(), {"--ranks", "16", "--dispatcher", "direct"});
    return json_of(std::move(options)).at("config").at("tokens_per_rank").get<Counts>();
  };
  const Counts drawn = counts({"--tokens", "100", "--tokens-spread", "0.25"});
  ASSERT_EQ(drawn.size(), 16U);
  EXPECT_GE(*std::min_element(drawn.begin(), drawn.end()), 75);
  EXPECT_LE(*std::max_element(drawn.begin(), drawn.end()), 100);
  EXPECT_GT(std::set<std::int64_t>(drawn.begin(), drawn.end()).size(), 4U);
  EXPECT_EQ(counts({"--tokens", "100", "--tokens-spread", "0.25", "--group", "processes"}), drawn);
  EXPECT_NE(counts({"--tokens", "100", "--tokens-spread", "0.25", "--seed", "2"}), drawn);
  EXPECT_EQ(counts({"--tokens", "100", "--tokens-spread", "0"}), Counts(16, 100));
  EXPECT_EQ(counts({"--tokens", "1", "--tokens-spread", "0.9999999999999999"}), Counts(16, 1));
  EXPECT_EQ(counts({"--tokens", "0", "--tokens-spread", "0.5"}), Counts(16, 0));
}

TEST(BenchTokens, OneCountForEveryRankOrOneForAll) {
  for (const std::string group : {"threads", "processes"}) {
    const CommandResult result = run_epistle(arguments_with({"--tokens", "1,2,3", "--ranks", "2", "--group", group}));
    EXPECT_EQ(result.exit_code, 2) << result.describe();
    EXPECT_TRUE(is_error_line(result.err,
                              "--tokens lists 3 counts, and there are 2 ranks; give one for every rank, or "
                              "one for all"))
        << result.err;
  }
  EXPECT_EQ(json_of({"--tokens", "7", "--ranks", "3"}).at("config").at("tokens_per_rank"), Counts(3, 7));
  EXPECT_EQ(json_of({"--tokens", "7,0,0,1"}).at("config").at("ranks"), 4);
}

TEST(BenchTokens, ATraceIsSharedOutInOrder) {
  const TempDir dir;
  const std::string trace =
      dir.write("t.jsonl", R"({"layer":4,"num_experts":4,"top_k":1,"num_tokens":4,"expert_ids":[[0],[1],[2],[3]]})");
  // Rank 0 takes 0 1 2, rank 1 takes 3 0: of the five, experts 2 and 3 (rank 1) get two. Rank 0 gets three rows.
  for (const std::string group : {"threads", "processes"}) {
    const CommandResult result =
        run_epistle({"bench", "--routing", "trace:" + trace, "--tokens", "3,2", "--hidden", "32", "--iters", "1",
                     "--group", group, "--dispatcher", "direct", "--json", "-"});
    ASSERT_EQ(result.exit_code, 0) << result.describe();
    const auto json = nlohmann::json::parse(result.out);
    EXPECT_EQ(json.at("verified"), true);
    EXPECT_EQ(json.at("load").at("max_rows"), 3);
    for (const auto& phase : json.at("results")) {
      // One row crosses each way: token 2 of rank 0 to expert 2, and the second token of rank 1 to expert 0.
      if (phase.at("phase") != "dispatch") continue;
      EXPECT_EQ(phase.at("wire_bytes"), 64) << group;
    }
  }
}

TEST(BenchTokens, RanksOfALauncherTakeThem) {
  std::vector<std::string> arguments = {"run", "-n", "3", "--", kEpistle};
  for (const std::string& argument : arguments_with({"--tokens", "5,0,2"})) arguments.push_back(argument);
  const CommandResult result = run_epistle(arguments);
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_NE(result.out.find("; 3 processes of 5, 0, 2 tokens; bf16"), std::string::npos) << result.out;
}

TEST(BenchTokens, CapacityAndDropsGoByEachRanksOwn) {
  const auto json = json_of({"--tokens", "60,0,6", "--drop-capacity", "1.0", "--routing", "zipf:1.5", "--layout",
                             "expert_blocks", "--pad-to-capacity"});
  EXPECT_EQ(json.at("verified"), true);
  EXPECT_EQ(json.at("config").at("router_capacity"), 15);  // 60 tokens x 3 of 12 experts
  EXPECT_EQ(json.at("load").at("dropped"), 0);
}

}  // namespace
}  // namespace epistle::test
