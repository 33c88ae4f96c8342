// `epistle bench --chain`: pairs of dispatch and combine in a row. What needs a GPU is in cli_device.
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/bench_run.hpp"

namespace epistle::test {
namespace {

TEST(BenchPairs, EveryDispatcherHasARow) {
  for (const char* const group : {"threads", "processes"}) {
    const auto json = bench_json({"--chain", "5", "--dispatcher", "direct,low_latency,reference", "--ranks", "3",
                                  "--group", group, "--seed", "7"});
    EXPECT_EQ(json.at("verification"), "passed");
    EXPECT_TRUE(json.at("replays").is_null());
    std::vector<std::string> names;
    for (const auto& chain : json.at("chain")) {
      names.push_back(chain.at("dispatcher"));
      EXPECT_EQ(chain.at("pairs"), 5);
      EXPECT_EQ(chain.at("in_graph"), false);
      EXPECT_EQ(chain.at("samples"), 2);
      EXPECT_GT(chain.at("min_us").get<double>(), 0.0);
      EXPECT_LE(chain.at("min_us").get<double>(), chain.at("median_us").get<double>());
      EXPECT_LE(chain.at("median_us").get<double>(), chain.at("p90_us").get<double>());
      EXPECT_LE(chain.at("p90_us").get<double>(), chain.at("p99_us").get<double>());
    }
    EXPECT_EQ(names, (std::vector<std::string>{"direct", "low_latency", "reference"}));
  }
}

TEST(BenchPairs, WithOtherLayoutsAndSizings) {
  for (const std::vector<std::string>& options :
       std::vector<std::vector<std::string>>{{"--layout", "expert_major", "--alignment", "4"},
                                             {"--layout", "expert_blocks", "--capacity-rows", "40"},
                                             {"--sizing", "capacity", "--capacity-rows", "40", "--stage-combine"},
                                             {"--dtype", "fp8", "--hidden", "256"}}) {
    std::vector<std::string> all = {"bench",   "--experts", "12",      "--top-k", "3",      "--tokens", "20,7",
                                    "--iters", "1",         "--chain", "3",       "--json", "-"};
    all.insert(all.end(), options.begin(), options.end());
    const CommandResult result = run_epistle(all);
    EXPECT_EQ(result.exit_code, 0) << result.describe();
    const auto json = nlohmann::json::parse(result.out, nullptr, false);
    EXPECT_EQ(json.at("verification"), "passed");
    EXPECT_EQ(json.at("chain").size(), 2U);
  }
}

TEST(BenchPairs, ChainsAreCheckedToo) {
  const auto without = bench_json({"--dispatcher", "direct", "--seed", "3"});
  const auto with = bench_json({"--dispatcher", "direct", "--seed", "3", "--chain", "2"});
  // Before the timed iterations, after them, and the chain.
  EXPECT_EQ(with.at("verified_bytes").get<std::int64_t>() * 2, without.at("verified_bytes").get<std::int64_t>() * 3);
}

TEST(BenchPairs, WithoutTheOptionThereAreNone) {
  const auto json = bench_json({"--dispatcher", "direct"});
  ASSERT_TRUE(json.contains("chain"));
  ASSERT_TRUE(json.contains("replays"));
  EXPECT_TRUE(json.at("chain").is_null());
  EXPECT_TRUE(json.at("replays").is_null());
  EXPECT_TRUE(json.at("host_calls").is_null());
  EXPECT_FALSE(has_line_starting_with(run_bench({"--dispatcher", "direct"}).out, "direct      chain"));
}

TEST(BenchPairs, TheTableHasRowsOfTheirOwn) {
  const CommandResult result = run_bench({"--dispatcher", "direct", "--chain", "5"});
  EXPECT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_TRUE(has_line_starting_with(result.out, "dispatcher  in a row ")) << result.out;
  EXPECT_TRUE(has_line_starting_with(result.out, "direct      chain of 5 pairs ")) << result.out;
  EXPECT_NE(result.out.find("Times are those of one pair on the slowest rank"), std::string::npos) << result.out;
}

TEST(BenchPairs, WrongUse) {
  for (const auto& [options, part] : std::vector<std::pair<std::vector<std::string>, std::string>>{
           {{"--chain", "0"}, "--chain is '0'"},
           {{"--chain", "201"}, "--chain is '201'"},
           {{"--chain", "many"}, "--chain is 'many'"},
           {{"--device", "cuda", "--replays", "0"}, "--replays is '0'"},
           {{"--host-calls", "10"}, "--host-calls belongs to --device cuda; the device is host"},
           {{"--device", "cuda", "--host-calls", "0"}, "--host-calls is '0'"},
           {{"--replays", "10"}, "--replays belongs to --device cuda; the device is host"},
           {{"--chain", "2", "--replays", "10"}, "--replays belongs to --device cuda; the device is host"}}) {
    for (const char* const group : {"threads", "processes"}) {
      std::vector<std::string> all = options;
      all.insert(all.end(), {"--group", group});
      const CommandResult result = run_bench(all);
      EXPECT_EQ(result.exit_code, 2) << ::testing::PrintToString(all) << result.describe();
      EXPECT_TRUE(is_error_line(result.err, part)) << part << result.describe();
      EXPECT_EQ(result.out, "");
    }
  }
}

}  // namespace
}  // namespace epistle::test
