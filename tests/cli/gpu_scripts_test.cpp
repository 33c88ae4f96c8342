// scripts/gpu-check, with programs that stand in for a GPU and what runs on it.
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/epistle_command.hpp"
#include "support/python.hpp"

namespace epistle::test {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

const std::string kScripts = EPISTLE_SOURCE_DIR "/scripts/";

void write_program(const TempDir& dir, const std::string& name, const std::string& body) {
  fs::create_directories(fs::path(dir.file(name)).parent_path());
  fs::permissions(dir.write(name, "#!/bin/sh\n" + body + "\n"), fs::perms::owner_all);
}

/// A carried build and the tools of a GPU machine. Every program but that of the soaks succeeds.
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
  write_program(dir, "build/tests/cuda_row_flags", "echo '[  PASSED  ] 10 tests.'");
  write_program(dir, "build/tests/cuda_soak", "echo 'rank 1: rows differ'; exit 1");
  write_program(
      dir, "build/apps/epistle/epistle",
      "while [ $# -gt 0 ]; do [ \"$1\" != --json ] || target=\"$2\"; shift; done\n"
      "[ -z \"$target\" ] ||\n"
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
  // conformance, row-flags, memcheck, doctor and the benchmarks that one GPU is enough for
  EXPECT_TRUE(lines.back().starts_with("6 passed, 3 failed, ")) << result.out;
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
  EXPECT_EQ(step_named(summary, "soak-replays-virtual-8").at("status"), "failed");
  EXPECT_EQ(step_named(summary, "soak-replays-2").at("status"), "skipped");
  EXPECT_EQ(step_named(summary, "soak-real").at("reason"), "needs 2 GPUs, there is 1");
  EXPECT_EQ(step_named(summary, "token-major-bf16").at("status"), "skipped");
  EXPECT_EQ(step_named(summary, "doctor").at("status"), "passed");
  EXPECT_EQ(step_named(summary, "compare-128").at("reason"), "needs 2 GPUs, there is 1");
  EXPECT_EQ(step_named(summary, "virtual-8-bf16").at("status"), "passed");
  EXPECT_EQ(step_named(summary, "deep-ep tests").at("status"), "skipped");
  EXPECT_EQ(step_named(summary, "deep-ep tests").at("reason"), "no --deep-ep CHECKOUT is given");
  EXPECT_EQ(step_named(summary, "python-speed").at("reason"), "needs 2 GPUs, there is 1");
  EXPECT_EQ(step_named(summary, "megatron-layer").at("reason"), "needs 2 GPUs, there is 1");
  const Json record = Json::parse(read_file(dir.file("out/virtual-8-bf16.json")));
  EXPECT_EQ(record.at("machine"), Json({{"cores", 4}}));
}

TEST(GpuCheck, OnlyTheStepsThatAreNamedRun) {
  if (!has_python()) GTEST_SKIP() << "python3 is not installed";
  const TempDir dir;
  write_machine(dir, 2);
  const CommandResult result = check_gpu(dir, {"--quick", "--only", "doctor,compare-4096,bench-profile-128"});
  EXPECT_EQ(result.exit_code, 0) << result.describe();
  const Json summary = Json::parse(read_file(dir.file("out/summary.json")));
  EXPECT_EQ(step_named(summary, "compare-4096").at("status"), "passed");
  EXPECT_EQ(step_named(summary, "bench-profile-128").at("reason"), "tune-128 wrote no profile");
  for (const Json& step : summary.at("steps")) EXPECT_NE(step.at("name"), "virtual-8-bf16");
  // Records say what was measured, not on whose machine.
  EXPECT_EQ(read_file(dir.file("out/compare-4096.json")).find("secret"), std::string::npos);
}

TEST(GpuCheck, EveryRecordOfThePagesIsMeasured) {
  if (!has_python()) GTEST_SKIP() << "python3 is not installed";
  const CommandResult wanted = run_command({kScripts + "make-docs", "--list"});
  const CommandResult measured = run_command({kScripts + "gpu-check", "--list"});
  ASSERT_EQ(wanted.exit_code, 0) << wanted.describe();
  ASSERT_EQ(measured.exit_code, 0) << measured.describe();
  ASSERT_GE(split_lines(wanted.out).size(), 7U);
  for (const std::string& name : split_lines(wanted.out)) {
    EXPECT_NE(("\n" + measured.out).find("\n" + name + ": "), std::string::npos) << name;
  }
}

TEST(GpuCheck, MoreRanksMeasureTheSameRowsAndAreSkippedWithoutTheirGpus) {
  if (!has_python()) GTEST_SKIP() << "python3 is not installed";
  const TempDir dir;
  write_machine(dir, 2);
  const CommandResult result = check_gpu(dir, {"--quick", "--ranks", "8"});
  EXPECT_EQ(result.exit_code, 0) << result.describe();
  const Json summary = Json::parse(read_file(dir.file("out/summary.json")));
  for (const char* const name : {"ep8-token-major-bf16-24sms", "ep8-token-major-bf16-12sms", "ep8-expert-major-bf16",
                                 "ep8-decode-expert-blocks-128", "ep8-compare-128", "ep8-tune-4096", "ep8-soak-replays",
                                 "memcheck-processes", "conformance-processes"}) {
    EXPECT_EQ(step_named(summary, name).at("reason"), "needs 8 GPUs, there is 2") << name;
  }
  for (const Json& step : summary.at("steps")) EXPECT_NE(step.at("name"), "token-major-bf16");
}

TEST(GpuCheck, VirtualRanksShareOneGpuOrTwo) {
  if (!has_python()) GTEST_SKIP() << "python3 is not installed";
  const TempDir dir;
  write_machine(dir, 2);
  // Both see what they may: one GPU, or all.
  write_program(dir, "build/apps/epistle/epistle",
                "all=\"$*\"; while [ $# -gt 0 ]; do [ \"$1\" != --json ] || target=\"$2\"; shift; done\n"
                "[ -z \"$target\" ] ||\n"
                "echo \"{\\\"tool\\\": \\\"epistle bench\\\", \\\"commit\\\": \\\"$CUDA_VISIBLE_DEVICES $all\\\"}\" > "
                "\"$target\"");
  const CommandResult result = check_gpu(
      dir, {"--quick", "--ranks", "4", "--virtual", "--only", "virtual-1-ep4-compare-128,virtual-2-ep4-compare-128"});
  EXPECT_EQ(result.exit_code, 0) << result.describe();
  const auto ran = [&](const std::string& name) {
    return Json::parse(read_file(dir.file("out/" + name + ".json"))).at("commit").get<std::string>();
  };
  EXPECT_TRUE(ran("virtual-1-ep4-compare-128").starts_with("0 compare --device cuda --ranks 4 --group threads "));
  EXPECT_TRUE(ran("virtual-2-ep4-compare-128").starts_with(" compare --device cuda --ranks 4 --group threads "));
}

TEST(GpuCheck, EndsWhenItsTimeIsOver) {
  if (!has_python()) GTEST_SKIP() << "python3 is not installed";
  const TempDir dir;
  write_machine(dir, 8);
  write_program(dir, "build/tests/cuda_processes", "echo '[  PASSED  ] 10 tests.'");
  write_program(dir, "build/apps/epistle/epistle", "exec sleep 60");
  const CommandResult result = check_gpu(dir, {"--ranks", "8", "--time-limit", "1"});
  EXPECT_EQ(result.exit_code, 0) << result.describe();
  const Json summary = Json::parse(read_file(dir.file("out/summary.json")));
  EXPECT_EQ(step_named(summary, "ep8-token-major-bf16-24sms").at("reason"),
            "stopped when the time was over (--time-limit)");
  for (const char* const name : {"ep8-token-major-bf16-16sms", "conformance-processes", "ep8-compare-128",
                                 "ep8-soak-direct", "memcheck-processes", "ep8-tune-4096"}) {
    EXPECT_EQ(step_named(summary, name).at("status"), "skipped") << name;
    EXPECT_EQ(step_named(summary, name).at("reason"), "no time is left (--time-limit)") << name;
  }
}

TEST(GpuCheck, WrongUse) {
  for (const std::vector<std::string>& arguments :
       std::vector<std::vector<std::string>>{{},
                                             {"a", "b"},
                                             {"a", "--fast"},
                                             {"a", "--prebuilt"},
                                             {"a", "--prebuilt", "no/such/folder"},
                                             {"a", "--deep-ep"},
                                             {"a", "--ranks"},
                                             {"a", "--ranks", "3"},
                                             {"a", "--time-limit"},
                                             {"a", "--time-limit", "0"}}) {
    std::vector<std::string> command = {kScripts + "gpu-check"};
    command.insert(command.end(), arguments.begin(), arguments.end());
    const CommandResult result = run_command(command);
    EXPECT_EQ(result.exit_code, 1) << result.describe();
    EXPECT_TRUE(result.err.starts_with("error: ")) << result.describe();
  }
}

}  // namespace
}  // namespace epistle::test
