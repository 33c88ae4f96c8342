// scripts/gpu-check and scripts/results-table, with programs that stand in for a GPU and what runs on it.
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/epistle_command.hpp"

namespace epistle::test {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using std::string_literals::operator""s;

const std::string kScripts = EPISTLE_SOURCE_DIR "/scripts/";

bool has_python() { return std::system("command -v python3 >/dev/null 2>&1") == 0; }

void write_program(const TempDir& dir, const std::string& name, const std::string& body) {
  fs::create_directories(fs::path(dir.file(name)).parent_path());
  fs::permissions(dir.write(name, "#!/bin/sh\n" + body + "\n"), fs::perms::owner_all);
}

/// A carried build and the tools of a GPU machine. Every program but the soak succeeds.
void write_machine(const TempDir& dir, int num_gpus) {
  std::string list;
  for (int gpu = 0; gpu < num_gpus; ++gpu) list += "echo 'GPU " + std::to_string(gpu) + ": Test GPU'\n";
  write_program(dir, "bin/nvidia-smi",
                "case \"$*\" in\n-L)\n" + list + ";;\n*name*) echo 'Test GPU' ;;\n*) echo 1.2.3 ;;\nesac");
  write_program(dir, "bin/compute-sanitizer", "echo \"ERROR SUMMARY: 0 errors\"");
  write_program(dir, "build/tests/layout_device", "echo 'no GPU that this code runs on'; exit 77");
  write_program(dir, "build/tests/cuda_conformance",
                "case \"$1\" in\n--gtest_list_tests) echo 'SanitizerSuite.'; echo '  One' ;;\n"
                "*) echo '[  PASSED  ] 10 tests.'; echo '[  SKIPPED ] 2 tests, listed below:' ;;\nesac");
  write_program(dir, "build/tests/cuda_soak", "echo 'rank 1: rows differ'; exit 1");
  write_program(
      dir, "build/apps/epistle/epistle",
      "for target; do :; done\n"
      "echo '{\"tool\": \"epistle bench\", \"commit\": \"abc\", \"machine\": {\"host\": \"secret\", \"cores\": 4}}'"
      " > \"$target\"");
}

CommandResult check_gpu(const TempDir& dir, const std::vector<std::string>& options) {
  std::vector<std::string> command = {kScripts + "gpu-check", dir.file("out"), "--prebuilt", dir.file("build")};
  command.insert(command.end(), options.begin(), options.end());
  const std::string path = dir.file("bin") + ":" + std::getenv("PATH");
  return run_command(command, {.environment = {{"PATH", path}}});
}

Json step_named(const Json& summary, const std::string& name) {
  for (const Json& step : summary.at("steps")) {
    if (step.at("name") == name) return step;
  }
  ADD_FAILURE() << "no step " << name;
  return Json::object();
}

TEST(GpuCheck, CountsWhatPassedFailedAndCouldNotRun) {
  if (!has_python()) GTEST_SKIP() << "python3 is not installed";
  const TempDir dir;
  write_machine(dir, 1);
  const CommandResult result = check_gpu(dir, {"--quick"});
  EXPECT_EQ(result.exit_code, 1) << result.describe();
  const auto lines = split_lines(result.out);
  // conformance, memcheck and the benchmark that one GPU is enough for
  EXPECT_TRUE(lines.back().starts_with("3 passed, 1 failed, ")) << result.out;
  const Json summary = Json::parse(read_file(dir.file("out/summary.json")));
  EXPECT_EQ(summary.at("device"), "Test GPU");
  EXPECT_EQ(summary.at("num_devices"), 1);
  EXPECT_EQ(summary.at("driver"), "1.2.3");
  EXPECT_EQ(summary.at("commit"), "abc");
  EXPECT_EQ(step_named(summary, "layout").at("status"), "skipped");
  EXPECT_EQ(step_named(summary, "layout").at("reason"), "no GPU that this code runs on");
  EXPECT_EQ(step_named(summary, "conformance").at("status"), "passed");
  EXPECT_EQ(step_named(summary, "conformance").at("reason"), "2 tests skipped");
  EXPECT_EQ(step_named(summary, "memcheck").at("status"), "passed");
  EXPECT_EQ(step_named(summary, "racecheck").at("status"), "skipped");
  EXPECT_EQ(step_named(summary, "soak-virtual").at("status"), "failed");
  EXPECT_EQ(step_named(summary, "soak-virtual").at("reason"), "exit code 1: rank 1: rows differ");
  EXPECT_EQ(step_named(summary, "soak-real").at("reason"), "needs 2 GPUs, there is 1");
  EXPECT_EQ(step_named(summary, "token-major-bf16").at("status"), "skipped");
  EXPECT_EQ(step_named(summary, "virtual-8-bf16").at("status"), "passed");
  const Json record = Json::parse(read_file(dir.file("out/virtual-8-bf16.json")));
  EXPECT_EQ(record.at("machine"), Json({{"cores", 4}}));
}

TEST(GpuCheck, EveryRecordOfTheTableIsMeasured) {
  if (!has_python()) GTEST_SKIP() << "python3 is not installed";
  const CommandResult wanted = run_command({kScripts + "results-table", "--list"});
  const CommandResult measured = run_command({kScripts + "gpu-check", "--list"});
  ASSERT_EQ(wanted.exit_code, 0) << wanted.describe();
  ASSERT_EQ(measured.exit_code, 0) << measured.describe();
  ASSERT_GE(split_lines(wanted.out).size(), 7U);
  for (const std::string& name : split_lines(wanted.out)) {
    EXPECT_NE(("\n" + measured.out).find("\n" + name + ": "), std::string::npos) << name;
  }
}

TEST(GpuCheck, WrongUse) {
  for (const std::vector<std::string>& arguments : std::vector<std::vector<std::string>>{
           {}, {"a", "b"}, {"a", "--fast"}, {"a", "--prebuilt"}, {"a", "--prebuilt", "no/such/folder"}}) {
    std::vector<std::string> command = {kScripts + "gpu-check"};
    command.insert(command.end(), arguments.begin(), arguments.end());
    const CommandResult result = run_command(command);
    EXPECT_EQ(result.exit_code, 1) << result.describe();
    EXPECT_TRUE(result.err.starts_with("error: ")) << result.describe();
  }
}

// ---- The table ------------------------------------------------------------------------------------------------------

Json phase_json(const std::string& phase, double median_us, double wire_bytes) {
  return {{"dispatcher", "direct"},  {"phase", phase},           {"median_us", median_us},
          {"p99_us", median_us + 9}, {"wire_bytes", wire_bytes}, {"link_fraction", 0.5}};
}

Json make_record(bool verified) {
  return {
      {"verified", verified},
      {"commit", "abc"},
      {"date", "2026-01-02T03:04:05Z"},
      {"limit_bytes_per_s", 350e9},
      {"limit", {{"kind", "peer stores"}}},
      {"gpu", {{"used_gpus", 2}, {"name", "Test GPU"}, {"driver", "1.2.3"}, {"runtime_cuda", "13.0"}}},
      {"config", {{"tokens", 4096}}},
      {"results",
       {phase_json("dispatch", 150, 7e6), phase_json("combine", 210, 14e6), phase_json("dispatch+layout", 185, 7e6)}}};
}

CommandResult make_table(const TempDir& dir, const std::vector<std::string>& options) {
  std::vector<std::string> command = {kScripts + "results-table", "--records", dir.file("records"), "--readme",
                                      dir.file("README.md")};
  command.insert(command.end(), options.begin(), options.end());
  return run_command(command);
}

constexpr const char* kReadme = "# A\n\n<!-- results:begin -->\nold\n<!-- results:end -->\nafter\n";

TEST(ResultsTable, IsMadeFromTheRecords) {
  if (!has_python()) GTEST_SKIP() << "python3 is not installed";
  const TempDir dir;
  fs::create_directories(dir.file("records"));
  dir.write("README.md", kReadme);
  dir.write("records/token-major-bf16-16sms.json", make_record(true).dump());
  dir.write("records/expert-major-bf16.json", make_record(false).dump());
  Json qwen = make_record(true);
  qwen["results"] = {phase_json("dispatch", 30, 7e6), phase_json("combine", 50, 14e6)};
  dir.write("records/qwen3-30b-fp8-32sms.json", qwen.dump());
  Json single = qwen;
  single["results"] = {phase_json("dispatch", 40, 7e6), phase_json("combine", 60, 14e6)};
  dir.write("records/qwen3-30b-fp8-32sms-single.json", single.dump());

  EXPECT_EQ(make_table(dir, {"--check"}).exit_code, 1);
  EXPECT_EQ(read_file(dir.file("README.md")), kReadme);
  const CommandResult result = make_table(dir, {});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_EQ(make_table(dir, {"--check"}).exit_code, 0);

  const std::string text = read_file(dir.file("README.md"));
  EXPECT_TRUE(text.starts_with("# A\n\n<!-- results:begin -->\n")) << text;
  EXPECT_TRUE(text.ends_with("<!-- results:end -->\nafter\n")) << text;
  EXPECT_EQ(text.find("old"), std::string::npos) << text;
  const std::string link = "[token-major-bf16-16sms](docs/results/token-major-bf16-16sms.json)";
  for (
      const std::string& part :
      {"2 x Test GPU, driver 1.2.3, CUDA 13.0; 4096 tokens per rank; link limit 350 GB/s"s,
       "| dispatch bf16 token-major, 16 SMs | ≤ 180 us | ≤ 195 us | 185 us | 194 us | 150 us | 50% | at least | - | " +
           link,
       "| combine bf16 from token-major rows, 16 SMs | ≤ 200 us | ≤ 225 us | 210 us | 219 us | - | 50% | at least | - | "s,
       "| dispatch bf16 token-major, 8 SMs | ≤ 290 us | ≤ 320 us | not measured |"s,
       "| not verified | - | [expert-major-bf16]"s,
       // 21 MB in 80 us are 262.5 GB/s
       "| ≥ 85% of the link | ≥ 75% | 80.0 us | 39.0 us + 59.0 us | 80.0 us | 75% | at least | 100 us, 60% | [qwen3"s}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  }
}

TEST(ResultsTable, WithoutRecordsItSaysSo) {
  if (!has_python()) GTEST_SKIP() << "python3 is not installed";
  const TempDir dir;
  dir.write("README.md", kReadme);
  ASSERT_EQ(make_table(dir, {}).exit_code, 0);
  EXPECT_NE(read_file(dir.file("README.md")).find("There are no records"), std::string::npos);
}

TEST(ResultsTable, WrongInputIsAnError) {
  if (!has_python()) GTEST_SKIP() << "python3 is not installed";
  const TempDir dir;
  EXPECT_TRUE(make_table(dir, {}).err.starts_with("error: cannot read "));
  dir.write("README.md", "no markers\n");
  EXPECT_TRUE(make_table(dir, {}).err.starts_with("error: the file has no lines "));
  dir.write("README.md", kReadme);
  fs::create_directories(dir.file("records"));
  dir.write("records/token-major-bf16.json", "{");
  EXPECT_NE(make_table(dir, {}).err.find("is not a benchmark record"), std::string::npos);
  EXPECT_NE(make_table(dir, {"--frobnicate"}).err.find("unknown argument"), std::string::npos);
}

TEST(ResultsTable, ReadmeIsUpToDate) {
  if (!has_python()) GTEST_SKIP() << "python3 is not installed";
  const CommandResult result = run_command({kScripts + "results-table", "--check"});
  EXPECT_EQ(result.exit_code, 0) << result.describe();
}

}  // namespace
}  // namespace epistle::test
