#include <algorithm>
#include <chrono>
#include <csignal>
#include <string>
#include <thread>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/epistle_command.hpp"
#include "support/browser.hpp"
#include "support/http.hpp"
#include "support/temp_dir.hpp"

namespace epistle::test {
namespace {

using BalanceJson = nlohmann::json;

/// Two layers of 64 tokens, of 8 experts; experts 0 and 1 get most of them.
std::string skewed_trace() {
  std::string text;
  for (int layer = 0; layer < 2; ++layer) {
    text += R"({"layer":)" + std::to_string(layer) + R"(,"num_experts":8,"top_k":2,"num_tokens":64,"expert_ids":[)";
    for (int token = 0; token < 64; ++token) {
      text += (token == 0 ? "[" : ",[") + std::to_string(token % 2) + "," + std::to_string(2 + token % 6) + "]";
    }
    text += "]}\n";
  }
  return text;
}

BalanceJson run_json(std::vector<std::string> arguments, const CommandOptions& options = {}) {
  arguments.insert(arguments.begin(), "balance");
  arguments.insert(arguments.end(), {"--json", "-"});
  const CommandResult result = run_epistle(arguments, options);
  EXPECT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_EQ(result.err, "");
  return BalanceJson::parse(result.out);
}

TEST(Balance, ScoresPoliciesOnATrace) {
  const TempDir dir;
  const std::string path = dir.write("t.jsonl", skewed_trace());
  const BalanceJson json = run_json({"trace:" + path, "--ranks", "4", "--slots", "12", "--batch", "16", "--plan-on",
                                     "first-half", "--policy", "none,eplb,incremental,per-batch"});
  ASSERT_EQ(json["results"].size(), 8U);
  for (const BalanceJson& result : json["results"]) {
    for (const char* const field :
         {"policy", "layer", "balancedness", "bound", "copies", "bytes", "plan_us", "replica_choice"}) {
      EXPECT_TRUE(result.contains(field)) << field;
    }
    EXPECT_LE(result["balancedness"].get<double>(), result["bound"].get<double>() + 1e-12);
  }
  EXPECT_EQ(json["results"][0]["policy"], "none");
  EXPECT_EQ(json["results"][1]["layer"], 1);
  EXPECT_EQ(json["results"][2]["replica_choice"], "round-robin");
  EXPECT_EQ(json["results"][4]["replica_choice"], "hash");
  EXPECT_EQ(json["results"][6]["replica_choice"], "exact");
  EXPECT_GE(json["results"][6]["balancedness"], 0.99);
  EXPECT_LT(json["results"][0]["balancedness"], 0.7);
}

TEST(Balance, ForetellsByTheLayersBeforeUnlessToldNotTo) {
  const TempDir dir;
  const std::string trace = "trace:" + dir.write("t.jsonl", skewed_trace());
  const auto results = [&](std::vector<std::string> more) {
    std::vector<std::string> arguments = {trace,     "--ranks", "4",        "--slots",    "12",
                                          "--batch", "16",      "--policy", "incremental"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_json(arguments)["results"];
  };
  const BalanceJson both = results({});
  EXPECT_FALSE(both[0].contains("foretold")) << "there is no layer before the first one";
  EXPECT_EQ(both[1]["foretold"], true);
  EXPECT_EQ(results({"--layer", "1"})[0]["batches"], both[1]["batches"]);
  EXPECT_FALSE(results({"--foretell", "off"})[1].contains("foretold"));
}

TEST(Balance, ReadsStandardInputAndShowsATable) {
  const TempDir dir;
  const std::string path = dir.write("t.jsonl", skewed_trace());
  const CommandResult result =
      run_command({"sh", "-c",
                   "cat '" + path + "' | '" + kEpistle +
                       "' balance trace:- --ranks 4 --slots 12 --batch 16 --policy per-batch,none"},
                  without_settings());
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  const auto lines = split_lines(result.out);
  ASSERT_EQ(lines.size(), 6U) << result.out;
  EXPECT_EQ(lines[0], "trace:-: 2 layers, 4 ranks, 12 slots");
  EXPECT_TRUE(lines[4].starts_with("per-batch")) << result.out;
  EXPECT_TRUE(lines[5].starts_with("none")) << result.out;
}

TEST(Balance, PlansOnLoadFiles) {
  const TempDir dir;
  const std::string path = dir.write(
      "l.json", R"({"loads": [[40, 10, 10, 10, 10]], "slots": 6, "ranks": 2, "current": [[0, 1, 2, 3, 4, -1]]})");
  const BalanceJson json = run_json({"--loads", path, "--policy", "none,incremental", "--bytes-per-expert", "7"});
  ASSERT_EQ(json["results"].size(), 2U);
  EXPECT_NEAR(json["results"][0]["balancedness"].get<double>(), 40.0 / 60.0, 1e-6);
  EXPECT_GE(json["results"][1]["balancedness"], 0.98);
  EXPECT_EQ(json["results"][1]["copies"], 1);
  EXPECT_EQ(json["results"][1]["bytes"], 7);
  const BalanceJson fresh = run_json({"--loads", dir.write("l.csv", "4,1,1,1,1\n"), "--ranks", "2", "--slots", "6"});
  EXPECT_EQ(fresh["results"].size(), 4U);
  EXPECT_EQ(fresh["slots"], (std::vector<int>{3, 3}));
}

TEST(Balance, SaysWhatRanksHadAndWhatTheyWouldHaveHad) {
  const TempDir dir;
  const BalanceJson json = run_json({"trace:" + dir.write("t.jsonl", skewed_trace()), "--ranks", "4", "--slots", "12",
                                     "--batch", "16", "--policy", "none,per-batch"});
  for (const BalanceJson& result : json["results"]) {
    EXPECT_EQ(result["batches"].size(), result["batch_bounds"].size());
    ASSERT_EQ(result["rank_loads"].size(), 4U);
    double sum = 0.0;
    double largest = 0.0;
    for (const BalanceJson& load : result["rank_loads"]) {
      sum += load.get<double>();
      largest = std::max(largest, load.get<double>());
    }
    EXPECT_NEAR(sum, 4.0, 1e-9);
    EXPECT_GE(1.0 / largest, result["worst"].get<double>() - 1e-9);
    if (result["policy"] == "none") {
      EXPECT_EQ(result["rank_loads"], result["rank_loads_before"]);
    }
  }
}

TEST(Balance, PageShowsTheNumbersOfTheRecord) {
  const TempDir dir;
  const CommandResult result =
      run_epistle({"balance", "trace:" + dir.write("t.jsonl", skewed_trace()), "--ranks", "4", "--slots", "12",
                   "--batch", "16", "--html", dir.file("page.html"), "--json", dir.file("record.json")});
  if (const std::string lack = lack_of_pages(result); !lack.empty()) GTEST_SKIP() << lack;
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  const BalanceJson record = BalanceJson::parse(read_file(dir.file("record.json")));
  const std::string page = read_file(dir.file("page.html"));
  for (const char* const title :
       {"Balancedness over time", "Copies", "Replicas", "Load of the ranks, before and after"}) {
    EXPECT_NE(page.find(title), std::string::npos) << title;
  }
  std::string reason;
  const auto found = open_page(dir.file("page.html"), reason);
  if (!found) GTEST_SKIP() << reason;
  expect_sound_page(*found, 5);
  for (const BalanceJson& entry : record.at("results")) {
    EXPECT_TRUE(shows_number(*found, entry.at("balancedness").get<double>())) << entry.dump();
    EXPECT_TRUE(shows_number(*found, entry.at("plan_us").get<double>())) << entry.dump();
  }
  EXPECT_EQ(found->at("record"), record);
}

TEST(Balance, ServesMetricsUntilInterrupted) {
  const TempDir dir;
  Subprocess server(epistle_command({"balance", "--loads", dir.write("l.csv", "4,1,1,1,1\n"), "--ranks", "2", "--slots",
                                     "6", "--policy", "incremental", "--serve", "0"}),
                    without_settings());
  const std::string prefix = "epistle: serving metrics at http://127.0.0.1:";
  for (int wait = 0; wait < 6000 && server.err().find("/metrics") == std::string::npos; ++wait) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  ASSERT_TRUE(server.err().starts_with(prefix)) << server.err();
  const auto port = static_cast<std::uint16_t>(std::stoi(server.err().substr(prefix.size())));
  const std::string answer = ask_loopback(port, "GET /metrics HTTP/1.1\r\n\r\n");
  EXPECT_NE(answer.find("epistle_expert_tokens_total{layer=\"0\",expert=\"0\"} 4\n"), std::string::npos) << answer;
  EXPECT_NE(answer.find("epistle_balancedness{layer=\"0\"} "), std::string::npos) << answer;
  EXPECT_NE(answer.find("epistle_expert_replicas{layer=\"0\",expert=\"0\"} "), std::string::npos) << answer;
  server.send_signal(SIGTERM);
  EXPECT_EQ(server.wait().exit_code, 0);
}

TEST(Balance, LeavesEplbOutWhereItCannotServeTheRanksAndNobodyAskedForIt) {
  const TempDir dir;
  const std::string path = dir.write("l.json", R"({"loads": [[1, 2, 3, 4, 5, 6, 7, 8]]})");
  const BalanceJson json = run_json({"--loads", path, "--ranks", "3", "--slots", "10"});
  ASSERT_EQ(json["results"].size(), 3U);
  ASSERT_EQ(json["left_out"].size(), 1U);
  EXPECT_EQ(json["left_out"][0]["policy"], "eplb");
  EXPECT_NE(json["left_out"][0]["reason"].get<std::string>().find("equally many slots"), std::string::npos);
  EXPECT_FALSE(run_json({"--loads", path, "--ranks", "4", "--slots", "8"}).contains("left_out"));
  EXPECT_EQ(run_epistle({"balance", "--loads", path, "--ranks", "3", "--slots", "10", "--policy", "eplb"}).exit_code,
            2);
}

TEST(Balance, RefusesWhatItCannotDo) {
  const TempDir dir;
  const std::string trace = "trace:" + dir.write("t.jsonl", skewed_trace());
  const auto refuse = [](std::vector<std::string> arguments, int exit_code, const std::string& part) {
    arguments.insert(arguments.begin(), "balance");
    const CommandResult result = run_epistle(arguments);
    EXPECT_EQ(result.exit_code, exit_code) << result.describe();
    EXPECT_TRUE(is_error_line(result.err, part)) << result.describe();
    EXPECT_EQ(result.out, "");
  };
  refuse({}, 2, "expected trace:FILE or --loads FILE");
  refuse({"t.jsonl", "--ranks", "4"}, 2, "expected trace:FILE");
  refuse({trace}, 2, "give --ranks");
  refuse({trace, "--ranks", "4", "--slots", "7"}, 2, "7 slots for 8 experts");
  refuse({trace, "--ranks", "4", "--slots", "3,3,3"}, 2, "slots of 3 ranks, expected 4");
  refuse({trace, "--ranks", "4", "--slots", "12"}, 2, "less than a batch of 2048");
  refuse({trace, "--ranks", "4", "--slots", "13", "--batch", "16", "--policy", "eplb"}, 2,
         "EPLB needs equally many slots");
  refuse({trace, "--ranks", "4", "--policy", "best"}, 2, "--policy");
  refuse({trace, "--ranks", "4", "--batch", "16", "--serve", "host:1"}, 2, "expected PORT or HOST:PORT");
  refuse({trace, "--ranks", "4", "--json", "a", "--html", "a"}, 2, "--json and --html both go to");
  refuse({trace, "--ranks", "4", "--batch", "16", "--layer", "7"}, 3, "it holds these layers: 0-1");
  refuse({"trace:" + dir.file("absent"), "--ranks", "4"}, 3, "absent");
  refuse({"--loads", dir.write("l.json", "{}")}, 3, "no \"loads\"");
  refuse({"--loads", dir.write("c.json", R"({"loads": [[1, 2]], "slots": 2, "ranks": 2, "current": [[0]]})")}, 3,
         "\"current\" has 1 slots in layer 0, expected 2");
}

}  // namespace
}  // namespace epistle::test
