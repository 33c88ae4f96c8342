// epistle simulate.
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/epistle_command.hpp"
#include "support/browser.hpp"
#include "support/temp_dir.hpp"

namespace epistle::test {
namespace {

using SimulateJson = nlohmann::json;

SimulateJson simulated(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "simulate");
  for (const char* const argument : {"--quiet", "--json", "-"}) arguments.emplace_back(argument);
  const CommandResult result = run_epistle(std::move(arguments));
  EXPECT_EQ(result.exit_code, 0) << result.describe();
  return SimulateJson::parse(result.out, nullptr, false);
}

TEST(SimulateCommand, SaysWhatMovesAndWhatItTakes) {
  const SimulateJson json =
      simulated({"--ranks", "16", "--tokens", "256", "--experts", "64", "--top-k", "4", "--routing", "zipf:0.8"});
  EXPECT_EQ(json.at("ranks"), 16);
  EXPECT_EQ(json.at("domains"), 2);
  EXPECT_EQ(json.at("nics_per_domain"), 8);
  EXPECT_EQ(json.at("rails"), 8);
  const SimulateJson& step = json.at("steps").at(0);
  EXPECT_EQ(step.at("tokens"), 16 * 256);
  EXPECT_EQ(step.at("assignments"), 16 * 256 * 4);
  EXPECT_NEAR(step.at("closed_forms").at("distinct_ranks").get<double>() / step.at("distinct_ranks").get<double>(), 1.0,
              0.02);
  EXPECT_EQ(json.at("last_ranks").size(), 16U);
  EXPECT_EQ(json.at("last_placement").at(15), SimulateJson({60, 61, 62, 63}));
  bool has_bytes = false;
  for (const SimulateJson& mode : step.at("dispatchers")) {
    if (mode.at("possible") == false) {
      EXPECT_FALSE(mode.at("why_not").get<std::string>().empty());
      continue;
    }
    for (const char* const phase : {"dispatch", "combine"}) {
      const SimulateJson& exchange = mode.at(phase);
      has_bytes = has_bytes || exchange.at("network_bytes").get<double>() > 0;
      EXPECT_EQ(exchange.at("rail_bytes").size(), 8U);
      EXPECT_LE(exchange.at("low_us").get<double>(), exchange.at("us").get<double>());
      EXPECT_GT(exchange.at("busiest_link").at("us").get<double>(), 0.0);
    }
    EXPECT_GE(mode.at("straggler_factor").get<double>(), 1.0 - 1e-9);
  }
  EXPECT_TRUE(has_bytes);
}

TEST(SimulateCommand, SaysWhatIsOnlyABoundAndTellsTheStepsOfWhatCanBeRun) {
  const std::vector<std::string> arguments = {"simulate", "--ranks", "4", "--tokens", "16", "--steps", "2", "--quiet"};
  const CommandResult text = run_epistle(arguments);
  EXPECT_EQ(text.exit_code, 0) << text.describe();
  EXPECT_NE(text.out.find("layer, low_latency"), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("in 1 domain:"), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("Times are of priors"), std::string::npos) << text.out;
  const SimulateJson json = simulated({"--ranks", "4", "--tokens", "16"});
  EXPECT_TRUE(json.at("measurements").empty());
  for (const SimulateJson& mode : json.at("steps").at(0).at("dispatchers")) {
    EXPECT_EQ(mode.at("only_a_bound"), mode.at("name") == "fused_bound");
  }
}

TEST(SimulateCommand, PlaysAPolicyOverSteps) {
  const SimulateJson json = simulated(
      {"--ranks", "8", "--tokens", "128", "--experts", "32",          "--top-k", "4",  "--routing",     "zipf:1",
       "--steps", "3", "--drift",  "0.1", "--policy",  "incremental", "--slots", "40", "--dispatchers", "direct"});
  ASSERT_EQ(json.at("steps").size(), 3U);
  EXPECT_EQ(json.at("slots"), 40);
  EXPECT_GT(json.at("steps").at(0).at("copies").at("num_copies").get<int>(), 0);
  EXPECT_GT(json.at("steps").at(0).at("copies").at("bytes").get<double>(), 0);
  EXPECT_EQ(json.at("steps").at(0).at("dispatchers").size(), 1U);
}

TEST(SimulateCommand, TakesPlacementClusterAndTraceFromFiles) {
  const TempDir dir;
  const std::string trace = dir.write(
      "trace.jsonl", R"({"layer": 3, "num_experts": 4, "top_k": 2, "num_tokens": 2, "expert_ids": [[0, 1], [2, 3]]})");
  const std::string cluster = dir.write("pair.json", R"({"name": "pair", "preset": "b200", "gpus_per_domain": 1})");
  const std::string placement = dir.write("placement.json", R"({"placement": [[0, 2], [1, 3]]})");
  const SimulateJson json = simulated({"--routing", "trace:" + trace, "--layer", "3", "--cluster", cluster, "--ranks",
                                       "2", "--tokens", "10", "--placement", placement});
  EXPECT_EQ(json.at("experts"), 4);
  EXPECT_EQ(json.at("cluster"), "pair");
  // Every token has one expert on each rank.
  EXPECT_EQ(json.at("steps").at(0).at("distinct_ranks"), 2.0);
  EXPECT_EQ(json.at("steps").at(0).at("busiest_rank_factor"), 1.0);
  EXPECT_EQ(json.at("last_ranks").at(0).at("sent_remote_rows"), 10);
  const std::string balanced =
      dir.write("balanced.json", R"({"results": [{"policy": "eplb", "placement": [[0, 1], [2, 3]]}]})");
  EXPECT_EQ(simulated({"--routing", "trace:" + trace, "--ranks", "2", "--tokens", "10", "--placement", balanced})
                .at("steps")
                .at(0)
                .at("distinct_ranks"),
            1.0);
}

TEST(SimulateCommand, RefusesWhatMakesNoSense) {
  const TempDir dir;
  const auto code = [](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "simulate");
    return run_epistle(std::move(arguments)).exit_code;
  };
  EXPECT_EQ(code({"--ranks", "5000"}), 2);
  EXPECT_EQ(code({"--routing", "lottery"}), 2);
  EXPECT_EQ(code({"--policy", "hope"}), 2);
  EXPECT_EQ(code({"--near"}), 2);
  EXPECT_EQ(code({"--layer", "1"}), 2);
  EXPECT_EQ(code({"--groups", "4"}), 2);
  EXPECT_EQ(code({"--dispatchers", "pigeon"}), 3);
  EXPECT_EQ(code({"--placement", dir.file("none.json")}), 3);
  EXPECT_EQ(code({"--placement", dir.write("bad.json", R"([[0, "one"]])")}), 3);
  EXPECT_EQ(
      code({"--ranks", "2", "--experts", "4", "--top-k", "1", "--placement", dir.write("few.json", "[[0], [1]]")}), 2);
  EXPECT_EQ(code({"--json", ""}), 2);
}

TEST(SimulatePage, ShowsTheNumbersOfTheRecord) {
  const TempDir dir;
  const CommandResult result = run_epistle({"simulate", "--ranks", "4", "--tokens", "64", "--steps", "2", "--quiet",
                                            "--html", dir.file("page.html"), "--json", dir.file("record.json")});
  if (const std::string lack = lack_of_pages(result); !lack.empty()) GTEST_SKIP() << lack;
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  std::string reason;
  const auto found = open_page(dir.file("page.html"), reason);
  if (!found) GTEST_SKIP() << reason;
  expect_sound_page(*found, 4);
  const SimulateJson record = SimulateJson::parse(read_file(dir.file("record.json")));
  EXPECT_EQ(found->at("record"), record);
  for (const SimulateJson& step : record.at("steps")) {
    EXPECT_TRUE(shows_number(*found, step.at("busiest_rank_factor").get<double>()));
  }
}

TEST(PlanPage, ShowsTimesMemoryAndFlips) {
  const TempDir dir;
  const CommandResult result = run_epistle(
      {"plan", "--dispatchers", "direct,deepep", "--html", dir.file("page.html"), "--json", dir.file("record.json")});
  if (const std::string lack = lack_of_pages(result); !lack.empty()) GTEST_SKIP() << lack;
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  const SimulateJson record = SimulateJson::parse(read_file(dir.file("record.json")));
  EXPECT_EQ(record.at("flip_map").size(), 25U);
  std::string reason;
  const auto found = open_page(dir.file("page.html"), reason);
  if (!found) GTEST_SKIP() << reason;
  expect_sound_page(*found, 4);
  EXPECT_EQ(found->at("record"), record);
  EXPECT_TRUE(shows_number(*found, record.at("plans").at(0).at("step_us").get<double>() / 1000));
  EXPECT_EQ(run_epistle({"plan", "--explain", "1", "2", "--html", dir.file("b.html")}).exit_code, 2);
}

}  // namespace
}  // namespace epistle::test
