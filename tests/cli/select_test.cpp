#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/epistle_command.hpp"

namespace epistle::test {
namespace {

using Json = nlohmann::json;

TEST(SelectCommand, JsonHasWhatScriptsRead) {
  const CommandResult result = run_epistle({"select", "--hardware", "h100-hgx", "--ep", "16", "--model",
                                            "qwen3-30b-a3b", "--assume", "deepep,hybridep", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  const Json report = Json::parse(result.out);
  const Json& first = report.at("candidates").at(0);
  EXPECT_EQ(first.at("backend"), "deepep");
  EXPECT_EQ(first.at("mode"), "normal");
  EXPECT_TRUE(first.at("score").is_number());
  EXPECT_EQ(first.at("num_sms"), 20);
  for (const char* const field : {"rule", "text", "source"})
    EXPECT_TRUE(first.at("reasons").at(0).at(field).is_string());
  for (const char* const field : {"megatron", "vllm", "sglang"}) EXPECT_TRUE(first.at("flags").at(field).is_string());
  EXPECT_TRUE(first.at("env").is_object());
  for (const Json& rejected : report.at("rejected")) {
    for (const char* const field : {"backend", "reason", "rule"})
      EXPECT_FALSE(rejected.at(field).get<std::string>().empty());
  }
}

TEST(SelectCommand, TextSaysWhyAndWhatToPaste) {
  const CommandResult result =
      run_epistle({"select", "--hardware", "gb200-nvl72", "--ep", "64", "--model", "deepseek-v3", "--assume", "all"});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  for (const char* const part :
       {"Why hybridep", "--moe-flex-dispatcher-backend hybridep", "WARNING", "Not taken", "export USE_MNNVL=1"}) {
    EXPECT_NE(result.out.find(part), std::string::npos) << part << "\n" << result.out;
  }
}

TEST(SelectCommand, HardwareAsJson) {
  const TempDir dir;
  dir.write("rack.json", R"({"preset": "gb200-nvl72", "name": "rack", "gpus_per_domain": 36})");
  const CommandResult result =
      run_epistle({"select", "--hardware", dir.file("rack.json"), "--ep", "36", "--hidden", "4096", "--experts", "144",
                   "--top-k", "8", "--assume", "hybridep", "--json", "-"});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  const Json report = Json::parse(result.out);
  EXPECT_EQ(report.at("candidates").at(0).at("backend"), "hybridep");
  EXPECT_EQ(report.at("candidates").at(0).at("env").at("NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN"), "36");
}

TEST(SelectCommand, DoctorsReportSaysWhatIsThere) {
  const TempDir dir;
  dir.write("doctor.json",
            R"({"backends": [{"name": "deepep", "available": true}, {"name": "hybridep", "available": false}]})");
  const std::vector<std::string> query = {"select", "--hardware", "h100-hgx",  "--ep",
                                          "16",     "--model",    "qwen3-30b", "--json"};
  std::vector<std::string> arguments = query;
  arguments.insert(arguments.end() - 1, {"--doctor", dir.file("doctor.json")});
  const CommandResult result = run_epistle(arguments);
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_EQ(Json::parse(result.out).at("candidates").at(0).at("backend"), "deepep");
  dir.write("doctor.json", "{}");
  const CommandResult broken = run_epistle(arguments);
  EXPECT_EQ(broken.exit_code, 3);
  EXPECT_TRUE(is_error_line(broken.err, "backends")) << broken.err;
}

TEST(SelectCommand, DoctorsReportSaysTheMachine) {
  const TempDir dir;
  const std::string report = dir.write("doctor.json", R"({"hardware": "h200-hgx", "nvlink_domains": [[0, 1]],
      "nvlink_fabric": {"fabric": ""}, "network": {"nics_per_gpu": 0.5},
      "backends": [{"name": "hybridep", "available": true}]})");
  for (const char* const option : {"--doctor", "--hardware"}) {
    const CommandResult result =
        run_epistle({"select", option, report, "--ep", "16", "--model", "qwen3-30b", "--json"});
    ASSERT_EQ(result.exit_code, 0) << result.describe();
    const Json query = Json::parse(result.out).at("query");
    EXPECT_EQ(query.at("hardware"), "h200-hgx") << option;
    EXPECT_EQ(query.at("num_domains"), 8) << option;
    EXPECT_EQ(query.at("nics_per_domain"), 1) << option;
  }
  const std::string broken = dir.write("broken.json", R"({"hardware": "h200-hgx", "nvlink_domains": [3]})");
  const CommandResult result = run_epistle({"select", "--hardware", broken, "--ep", "8", "--model", "qwen3-30b"});
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_TRUE(is_error_line(result.err, "nvlink_domains")) << result.err;
}

TEST(SelectCommand, MistakesInOptionsAreNamed) {
  EXPECT_EQ(run_epistle({"select", "--model", "qwen3-30b"}).exit_code, 2);
  EXPECT_EQ(run_epistle({"select", "--ep", "8"}).exit_code, 2);
  EXPECT_EQ(run_epistle({"select", "--ep", "8", "--model", "qwen3-30b", "--megatron-version", "new"}).exit_code, 2);
  const CommandResult hardware = run_epistle({"select", "--ep", "8", "--model", "qwen3-30b", "--hardware", "h1000"});
  EXPECT_EQ(hardware.exit_code, 3);
  EXPECT_TRUE(is_error_line(hardware.err, "h100-hgx")) << hardware.err;
  const CommandResult backend = run_epistle({"select", "--ep", "8", "--model", "qwen3-30b", "--assume", "deepeep"});
  EXPECT_EQ(backend.exit_code, 3);
  EXPECT_TRUE(is_error_line(backend.err, "hybridep")) << backend.err;
}

TEST(SelectCommand, ChecksAFile) {
  const TempDir dir;
  dir.write("run.sh",
            "pretrain_gpt.py --num-experts 8 --moe-token-dispatcher-type alltoall \\\n  --moe-flex-dispatcher-backend "
            "deepep\n");
  const CommandResult result = run_epistle({"select", "--check", dir.file("run.sh"), "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  const Json report = Json::parse(result.out);
  EXPECT_EQ(report.at("engine"), "megatron");
  EXPECT_EQ(report.at("would_run"), "alltoall");
  ASSERT_EQ(report.at("findings").size(), 1U) << result.out;
  const Json& finding = report.at("findings").at(0);
  EXPECT_EQ(finding.at("rule"), "megatron-inert-backend");
  EXPECT_EQ(finding.at("severity"), "error");
  EXPECT_EQ(finding.at("line"), 2);
  EXPECT_EQ(finding.at("flag"), "--moe-flex-dispatcher-backend");
  EXPECT_FALSE(finding.at("message").get<std::string>().empty());
  EXPECT_FALSE(finding.at("fix").get<std::string>().empty());
  EXPECT_EQ(run_epistle({"select", "--check", dir.file("run.sh"), "--fail-on", "error"}).exit_code, 1);
}

TEST(SelectCommand, ChecksStandardInputAndSaysWhereItIsBroken) {
  CommandOptions options;
  options.input = "vllm serve x --all2all-backend deepep_low_latency\n";
  const CommandResult result = run_epistle({"select", "--check", "-"}, options);
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_NE(result.out.find("vllm-inert-backend"), std::string::npos) << result.out;
  const TempDir dir;
  dir.write("run.yaml", "a: 1\nb: [\n");
  const CommandResult broken = run_epistle({"select", "--check", dir.file("run.yaml")});
  EXPECT_EQ(broken.exit_code, 3);
  EXPECT_TRUE(is_error_line(broken.err, "run.yaml:")) << broken.err;
  EXPECT_EQ(run_epistle({"select", "--check", dir.file("missing.sh")}).exit_code, 3);
}

}  // namespace
}  // namespace epistle::test
