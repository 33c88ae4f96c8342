// `epistle bench --mask`: a group that goes on without some of its ranks.
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/bench_run.hpp"

namespace epistle::test {
namespace {

TEST(BenchMask, TheOthersAreVerifiedAndTimed) {
  const auto json =
      bench_json({"--mask", "1,3", "--ranks", "4", "--dispatcher", "direct,low_latency,alltoall,reference"});
  EXPECT_EQ(json.at("verification"), "passed");
  EXPECT_EQ(json.at("config").at("masked"), (std::vector<int>{1, 3}));
  constexpr double kMostUs = 60e6;
  for (const auto& result : json.at("results")) {
    // A rank that is not there has no times; as zeros they would begin with the machine.
    EXPECT_LT(result.at("median_us"), kMostUs) << result;
    const bool moves_rows = result.at("phase") != "layout";
    EXPECT_EQ(result.at("wire_bytes") > 0, moves_rows) << result;
  }
}

// Ranks that are left out may wake from the step before the mask only when it is in force.
TEST(BenchMask, ProcessesThatAreLeftOutEndWell) {
  constexpr int kTrials = 4;
  for (int trial = 0; trial < kTrials; ++trial) {
    const CommandResult result =
        run_bench({"--mask", "1,2,3", "--ranks", "4", "--group", "processes", "--dispatcher", "direct"});
    ASSERT_EQ(result.exit_code, 0) << result.describe();
  }
}

// The rank that passes rows of index 1 on in the first domain is masked, and the second domain has one rank left.
TEST(BenchMask, TheOthersPassRowsOnBetweenDomains) {
  for (const char* const group : {"threads", "processes"}) {
    const auto json = bench_json(
        {"--mask", "1,2", "--ranks", "4", "--domain-size", "2", "--group", group, "--dispatcher", "hybrid,alltoall"});
    EXPECT_EQ(json.at("verification"), "passed");
    EXPECT_EQ(json.at("config").at("masked"), (std::vector<int>{1, 2}));
    for (const auto& result : json.at("results")) {
      if (result.at("phase") == "layout" && result.at("dispatcher") != "hybrid") continue;
      EXPECT_GT(result.at("network_bytes"), 0) << result;
    }
  }
}

TEST(BenchMask, RanksThatCannotBeLeftOutAreRefused) {
  for (const char* const ranks : {"0", "2", "1,x"}) {
    const CommandResult result = run_bench({"--mask", ranks, "--ranks", "2"});
    EXPECT_EQ(result.exit_code, 2) << result.describe();
    EXPECT_NE(result.err.find("--mask"), std::string::npos) << result.err;
  }
}

}  // namespace
}  // namespace epistle::test
