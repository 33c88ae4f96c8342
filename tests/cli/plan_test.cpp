// epistle plan and epistle calibrate.
#include <string>

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
