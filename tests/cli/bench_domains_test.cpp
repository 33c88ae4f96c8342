// Ranks in declared domains on the command line: what is run, what crosses, and what is refused.
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "cli/bench_run.hpp"

namespace epistle::test {
namespace {

using Json = nlohmann::json;

TEST(BenchDomains, ShowsBytesByLinkForEveryDispatcher) {
  for (const char* const group : {"threads", "processes"}) {
    const Json record = bench_json({"--ranks", "4", "--domain-size", "2", "--group", group});
    ASSERT_TRUE(record.is_object());
    EXPECT_EQ(record.at("verification"), "passed");
    EXPECT_EQ(record.at("config").at("domain_size"), 2);
    EXPECT_EQ(record.at("config").at("domains"), 2);
    EXPECT_EQ(record.at("config").at("combine"), "domains");
    std::map<std::pair<std::string, std::string>, std::int64_t> network;
    for (const Json& result : record.at("results")) {
      const std::string phase = result.at("phase");
      network[{result.at("dispatcher"), phase}] = result.at("network_bytes");
      if (phase != "dispatch" && phase != "combine") continue;
      EXPECT_NEAR(result.at("wire_bytes").get<double>(),
                  result.at("domain_bytes").get<double>() + result.at("network_bytes").get<double>(), 1.0);
      EXPECT_GT(result.at("own_bytes"), 0);
    }
    // Three experts are on up to two ranks of the other domain: once over the link is less.
    EXPECT_LT((network[{"hybrid", "dispatch"}]), (network[{"alltoall", "dispatch"}]));
    EXPECT_LT((network[{"hybrid", "combine"}]), (network[{"alltoall", "combine"}]));
    // One record of 8 + 8 x top_k bytes per row of 128 that crosses.
    EXPECT_NEAR(static_cast<double>(network[{"hybrid", "layout"}]) / 32.0,
                static_cast<double>(network[{"hybrid", "dispatch"}]) / 128.0, 1.0);
  }
}

TEST(BenchDomains, AreOneUnlessDeclared) {
  const Json record = bench_json({"--ranks", "2", "--dispatcher", "hybrid"});
  ASSERT_TRUE(record.is_object());
  EXPECT_EQ(record.at("config").at("domains"), 1);
  EXPECT_EQ(record.at("config").at("combine"), "hierarchical");
  for (const Json& result : record.at("results")) EXPECT_EQ(result.at("network_bytes"), 0);
}

TEST(BenchDomains, AreSetForTheRanksOfRun) {
  std::vector<std::string> arguments = {"run", "-n", "2", "--domain-size", "1", "--", kEpistle};
  const std::vector<std::string> bench = bench_arguments({"--dispatcher", "hybrid", "--json", "-"});
  arguments.insert(arguments.end(), bench.begin(), bench.end());
  const CommandResult result = run_epistle(arguments);
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  const Json record = Json::parse(result.out);
  EXPECT_EQ(record.at("config").at("domains"), 2);
}

TEST(BenchDomains, ShowATableOfLinks) {
  const CommandResult result = run_epistle(bench_arguments({"--ranks", "2", "--domain-size", "1"}));
  EXPECT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_NE(result.out.find("network bytes"), std::string::npos) << result.out;
  EXPECT_NE(result.out.find("2 domains of 1 ranks"), std::string::npos) << result.out;
}

TEST(BenchDomains, ThatAreJoinedByTheNetworkAreHeldAgainstItsLimit) {
  const std::vector<std::pair<std::string, std::string>> fabric = {{"EPISTLE_DOMAIN_LINK", "fabric"},
                                                                   {"EPISTLE_FABRIC_PROVIDER", "tcp"}};
  const std::vector<std::string> arguments =
      bench_arguments({"--ranks", "2", "--domain-size", "1", "--dispatcher", "hybrid", "--json", "-"});
  const CommandResult result = run_epistle(arguments, {.environment = fabric});
  if (result.err.find("libfabric") != std::string::npos) GTEST_SKIP() << result.err;
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  const Json record = Json::parse(result.out);
  EXPECT_EQ(record.at("verification"), "passed");
  const double limit_bytes_per_s = record.at("network").at("limit_bytes_per_s");
  EXPECT_GT(limit_bytes_per_s, 0.0);
  EXPECT_EQ(record.at("network").at("transports").size(), 2U);
  for (const Json& phase : record.at("results")) {
    const double bytes_per_s = phase.at("network_bytes").get<double>() / phase.at("median_us").get<double>() * 1e6;
    EXPECT_NEAR(phase.at("network_fraction").get<double>(), bytes_per_s / limit_bytes_per_s, 1e-9);
  }
  EXPECT_EQ(bench_json({"--ranks", "2", "--domain-size", "1", "--dispatcher", "hybrid"}).at("network"), nullptr);
}

TEST(BenchDomains, ThatDoNotFitAreRefused) {
  const auto refused = [](const std::vector<std::string>& arguments, int exit_code, const std::string& part) {
    const CommandResult result = run_epistle(arguments);
    EXPECT_EQ(result.exit_code, exit_code) << result.describe();
    EXPECT_TRUE(is_error_line(result.err, part)) << result.describe();
  };
  refused(bench_arguments({"--ranks", "4", "--domain-size", "3"}), 2, "4 ranks were found, all on one host");
  refused(bench_arguments({"--ranks", "4", "--domain-size", "8"}), 2, "a domain has no more ranks than the group");
  refused({"run", "-n", "4", "--domain-size", "3", "--", "true"}, 2, "domains are of one size");
  refused(bench_arguments({"--ranks", "4", "--domain-size", "2", "--dispatcher", "hybrid", "--combine", "flat"}), 5,
          "over 2 domains its order is domains, not flat");
}

}  // namespace
}  // namespace epistle::test
