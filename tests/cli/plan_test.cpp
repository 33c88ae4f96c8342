// epistle plan and epistle calibrate.
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/epistle_command.hpp"

namespace epistle::test {
namespace {

using PlanJson = nlohmann::json;

constexpr const char* kTable =
    "system,version,ep_size,node_num,hidden,topk,num_experts,tokens_per_rank,dispatch_us,combine_us\n"
    "h100_sxm,1,8,1,7168,8,256,1,14,13\n"
    "h100_sxm,1,8,1,7168,8,256,64,28,41\n"
    "h100_sxm,1,8,1,7168,8,256,256,67,136\n";

TEST(PlanCommand, RanksPlansAndExplainsThem) {
  const CommandResult result = run_epistle({"plan", "--json", "-"});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  const PlanJson json = PlanJson::parse(result.out);
  const PlanJson& best = json.at("plans").at(0);
  EXPECT_EQ(best.at("ep"), 8);
  EXPECT_EQ(best.at("feasible"), true);
  EXPECT_GT(best.at("terms").size(), 3U);
  EXPECT_GE(json.at("next_measurements").size(), 3U);
  EXPECT_EQ(json.at("cluster").at("constants").at("num_sms").at("value"), 132);

  const CommandResult explained = run_epistle({"plan", "--explain", "1", "ep16-tp1-deepep_low_latency"});
  ASSERT_EQ(explained.exit_code, 0) << explained.describe();
  EXPECT_NE(explained.out.find("grouped_gemm"), std::string::npos) << explained.out;
  EXPECT_EQ(run_epistle({"plan", "--explain", "1", "ep3"}).exit_code, 3);
}

TEST(PlanCommand, SaysWhatATokenPutsOnTheNetwork) {
  const CommandResult result =
      run_epistle({"plan", "--gpus", "16", "--json", "-", "--dispatchers", "hybrid,nccl_alltoall"});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  const PlanJson json = PlanJson::parse(result.out);
  std::map<std::string, double> rows;
  for (const PlanJson& plan : json.at("plans")) {
    if (plan.at("ep") != 16) {
      EXPECT_TRUE(plan.at("network").is_null()) << plan.at("name");
      continue;
    }
    EXPECT_EQ(plan.at("network").at("domains"), 2);
    EXPECT_EQ(plan.at("network").at("nics_per_domain"), 8);
    EXPECT_EQ(plan.at("network").at("rails"), 8);
    rows[plan.at("dispatcher")] = plan.at("network").at("rows_per_token");
  }
  // Top-8 over two domains: one copy per domain at most, or four experts elsewhere.
  EXPECT_GT(rows.at("hybrid"), 0.9);
  EXPECT_LE(rows.at("hybrid"), 1.0);
  EXPECT_DOUBLE_EQ(rows.at("nccl_alltoall"), 4.0);
}

TEST(PlanCommand, TakesClusterModelAndMeasurementsFromFiles) {
  const TempDir dir;
  const std::string cluster = dir.write("rack.json", R"({"name": "rack", "preset": "b200", "gpus_per_domain": 16})");
  const std::string table = dir.write("low_latency.csv", kTable);
  const CommandResult result =
      run_epistle({"plan", "--cluster", cluster, "--model", "qwen3-30b-a3b", "--routing", "zipf:0.5", "--measurements",
                   table, "--dispatchers", "deepep_low_latency,direct", "--top", "3"});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_NE(result.out.find("on rack"), std::string::npos) << result.out;

  const CommandResult bad = run_epistle({"plan", "--cluster", dir.write("bad.json", R"({"preset": "b200", "x": 1})")});
  EXPECT_EQ(bad.exit_code, 3);
  EXPECT_TRUE(is_error_line(bad.err, "x is not a field of a cluster")) << bad.err;
  EXPECT_EQ(run_epistle({"plan", "--cluster", "h1000"}).exit_code, 3);
  EXPECT_EQ(run_epistle({"plan", "--workload", "party"}).exit_code, 2);
  EXPECT_EQ(run_epistle({"plan", "--max-ttft-ms", "5"}).exit_code, 2);
}

/// Words of a command without quotes, its program left out.
std::vector<std::string> arguments_of(const std::string& command) {
  std::istringstream words(command);
  std::vector<std::string> arguments;
  for (std::string word; words >> word;) arguments.push_back(word);
  arguments.erase(arguments.begin());
  return arguments;
}

TEST(PlanCommand, WhatItAsksToMeasureIsMeasuredAndRefits) {
  const TempDir dir;
  const std::string config = dir.write("config.json",
                                       R"({"hidden_size": 256, "num_experts": 8, "num_experts_per_tok": 2,
                                           "moe_intermediate_size": 128, "num_hidden_layers": 2,
                                           "num_attention_heads": 4})");
  const std::vector<std::string> question = {"plan",   "--model",     config, "--cluster", "host", "--gpus",
                                             "2",      "--precision", "bf16", "--tokens",  "16",   "--dispatchers",
                                             "direct", "--json",      "-"};
  const CommandResult before = run_epistle(question);
  ASSERT_EQ(before.exit_code, 0) << before.describe();
  const PlanJson asked = PlanJson::parse(before.out).at("next_measurements").at(0);
  std::vector<std::string> measuring = arguments_of(asked.at("command").get<std::string>());
  const std::string record = dir.file(asked.at("file").get<std::string>());
  ASSERT_EQ(measuring.back(), asked.at("file").get<std::string>());
  measuring.back() = record;
  measuring.insert(measuring.end(), {"--iters", "5", "--quiet"});
  const CommandResult measured = run_epistle(measuring);
  ASSERT_EQ(measured.exit_code, 0) << measured.describe();
  std::vector<std::string> again = question;
  again.insert(again.end(), {"--measurements", record});
  const CommandResult after = run_epistle(again);
  ASSERT_EQ(after.exit_code, 0) << after.describe();
  const auto provenances = [](const std::string& text) {
    std::set<std::string> found;
    const PlanJson json = PlanJson::parse(text);
    for (const PlanJson& plan : json.at("plans")) {
      for (const PlanJson& term : plan.at("terms")) {
        if (term.at("name") == "dispatch") found.insert(term.at("provenance").get<std::string>());
      }
    }
    return found;
  };
  EXPECT_FALSE(provenances(before.out).contains("measured here"));
  EXPECT_TRUE(provenances(after.out).contains("measured here")) << after.out;
}

TEST(PlanCommand, TakesSequencesInPlaceOfTokens) {
  const auto tokens_of = [](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"plan", "--model", "qwen3-30b-a3b", "--json", "-"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const CommandResult result = run_epistle(arguments);
    EXPECT_EQ(result.exit_code, 0) << result.describe();
    return PlanJson::parse(result.out).at("request").at("tokens_per_gpu").get<double>();
  };
  EXPECT_EQ(tokens_of({"--batch", "24"}), 24);
  EXPECT_EQ(tokens_of({"--workload", "prefill", "--batch", "3", "--sequence", "512", "--routing", "lognormal:0.5"}),
            1536);
  EXPECT_EQ(run_epistle({"plan", "--batch", "2", "--tokens", "5"}).exit_code, 2);
  EXPECT_EQ(run_epistle({"plan", "--tokens", "2", "--global-tokens", "5"}).exit_code, 2);
  EXPECT_EQ(run_epistle({"plan", "--max-tpot-ms", "0"}).exit_code, 2);
  EXPECT_EQ(run_epistle({"plan", "--workload", "prefill", "--batch", "2"}).exit_code, 2);
}

TEST(CalibrateCommand, LeavesOutRecordsOfOtherThingsAndSaysSo) {
  const TempDir dir;
  const std::string table = dir.write("fit.csv", kTable);
  const std::string other = dir.write("tune.json", R"({"tool": "epistle tune", "results": []})");
  const CommandResult result = run_epistle({"calibrate", "--fit", table, other, "--quiet"});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_NE(result.out.find("left out: "), std::string::npos) << result.out;
  EXPECT_NE(run_epistle({"calibrate", "--fit", other}).exit_code, 0);
}

TEST(CalibrateCommand, FitsAndEvaluates) {
  const TempDir dir;
  const std::string fit = dir.write("fit.csv", kTable);
  const std::string out = dir.file("out.json");
  const CommandResult result = run_epistle({"calibrate", "--fit", fit, "--evaluate", fit, "--json", out, "--quiet"});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_NE(result.out.find("1 to 8 tokens inside a domain and across two"), std::string::npos) << result.out;
  const PlanJson json = PlanJson::parse(read_file(out));
  const PlanJson& table = json.at("tables").at(0);
  EXPECT_EQ(table.at("table"), "fit");
  EXPECT_EQ(table.at("num_rows"), 3);
  EXPECT_LT(table.at("median_ape").get<double>(), 20.0);
  EXPECT_LE(table.at("coverage_90").get<double>(), 1.0);
  EXPECT_TRUE(table.contains("p90_ape"));
  EXPECT_TRUE(table.contains("worst"));
  EXPECT_FALSE(json.at("curves").at(0).at("not_fitted").empty());
}

TEST(CalibrateCommand, RefusesWhatItCannotRead) {
  const TempDir dir;
  EXPECT_EQ(run_epistle({"calibrate"}).exit_code, 2);
  EXPECT_EQ(run_epistle({"calibrate", "--fit", dir.file("none.csv")}).exit_code, 3);
  const CommandResult bad = run_epistle({"calibrate", "--fit", dir.write("bad.csv", "a,b\n1,2\n")});
  EXPECT_EQ(bad.exit_code, 3);
  EXPECT_TRUE(is_error_line(bad.err, "no column tells what was measured")) << bad.err;
}

}  // namespace
}  // namespace epistle::test
