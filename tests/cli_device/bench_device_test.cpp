// The options of `epistle bench` that choose a device, or belong to one.
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/bench_run.hpp"

namespace epistle::test {
namespace {

void expect_rejected(const std::vector<std::string>& options, const std::string& part) {
  for (const char* const group : {"threads", "processes"}) {
    std::vector<std::string> all = options;
    all.insert(all.end(), {"--group", group});
    const CommandResult result = run_bench(all);
    EXPECT_EQ(result.exit_code, 2) << ::testing::PrintToString(all) << result.describe();
    EXPECT_TRUE(is_error_line(result.err, part)) << part << result.describe();
    EXPECT_EQ(result.out, "") << ::testing::PrintToString(all);
  }
}

bool has_gpu() { return run_bench({"--device", "cuda", "--ranks", "1", "--no-verify"}).exit_code == 0; }

TEST(BenchDevice, OptionsOfTheOtherDeviceAreRejected) {
  expect_rejected({"--sms", "16"}, "--sms belongs to --device cuda; the device is host");
  expect_rejected({"--runs", "4"}, "--runs belongs to --device cuda; the device is host");
  expect_rejected({"--replays", "4"}, "--replays belongs to --device cuda; the device is host");
  expect_rejected({"--mover", "bulk"}, "--mover belongs to --device cuda; the device is host");
  expect_rejected({"--device", "cuda", "--workers", "1"}, "--workers belongs to --device host; the device is cuda");
  expect_rejected({"--device", "cuda", "--no-bind"}, "--no-bind belongs to --device host; the device is cuda");
}

TEST(BenchDevice, WrongValuesAreRejected) {
  expect_rejected({"--device", "gpu"}, "--device");
  expect_rejected({"--device", "cuda", "--sms", "0"}, "--sms");
  expect_rejected({"--device", "cuda", "--sms", "many"}, "--sms");
  expect_rejected({"--device", "cuda", "--mover", "pigeon"},
                  "--mover is 'pigeon'; it takes auto, bulk, copy-engines, vector");
}

TEST(BenchDevice, WithoutAGpuCudaIsUnsupported) {
  if (has_gpu()) GTEST_SKIP() << "this machine has a GPU";
  for (const char* const group : {"threads", "processes"}) {
    const CommandResult result = run_bench({"--device", "cuda", "--sms", "8", "--mover", "vector", "--group", group});
    EXPECT_EQ(result.exit_code, 5) << result.describe();
    EXPECT_TRUE(result.err.starts_with("epistle: error: unsupported: --device cuda: ")) << result.describe();
    EXPECT_GT(split_lines(result.err).front().size(),
              std::string("epistle: error: unsupported: --device cuda: ").size());
    EXPECT_EQ(result.out, "");
  }
}

TEST(BenchDevice, ListIsThatOfTheDevice) {
  const CommandResult result = run_epistle({"bench", "--list", "--device", "cuda"});
  if (result.exit_code == 0) {
    EXPECT_TRUE(has_line_starting_with(result.out, "direct ")) << result.out;
    EXPECT_FALSE(has_line_starting_with(result.out, "reference ")) << result.out;
  } else {
    EXPECT_EQ(result.exit_code, 5) << result.describe();
    EXPECT_TRUE(is_error_line(result.err, "unsupported: --device cuda: ")) << result.describe();
  }
}

TEST(BenchDevice, VirtualRanksOnOneGpu) {
  if (!has_gpu()) GTEST_SKIP() << "this machine has no GPU";
  const auto json = bench_json({"--device", "cuda", "--ranks", "3", "--sizing", "capacity", "--capacity-rows", "60"});
  EXPECT_EQ(json.at("verification"), "passed");
  EXPECT_EQ(json.at("config").at("device"), "cuda");
  EXPECT_EQ(json.at("gpu").at("device_of_rank").size(), 3U);
  EXPECT_GT(json.at("limit_bytes_per_s").get<double>(), 0.0);
  std::vector<std::string> phases;
  for (const auto& result : json.at("results")) {
    phases.push_back(result.at("phase"));
    EXPECT_GT(result.at("median_us").get<double>(), 0.0);
    EXPECT_TRUE(result.contains("link_fraction"));
  }
  EXPECT_EQ(phases, (std::vector<std::string>{"layout", "dispatch", "combine", "dispatch+layout", "round_trip",
                                              "graph_round_trip"}));
}

TEST(BenchDevice, PairsInARowNeedStaticShapes) {
  if (run_epistle({"bench", "--list", "--device", "cuda"}).exit_code != 0) GTEST_SKIP() << "a build without CUDA";
  expect_rejected({"--device", "cuda", "--chain", "4"}, "--chain captures calls into a CUDA graph, which needs static");
  expect_rejected({"--device", "cuda", "--replays", "4", "--layout", "expert_blocks", "--capacity-rows", "60"},
                  "--replays captures calls into a CUDA graph, which needs static");
  const CommandResult result = run_bench({"--device", "cuda", "--dispatcher", "alltoall", "--chain", "4", "--sizing",
                                          "capacity", "--capacity-rows", "60"});
  EXPECT_EQ(result.exit_code, 5) << result.describe();
  EXPECT_TRUE(is_error_line(result.err, "--dispatcher alltoall: --chain captures calls into a CUDA graph"))
      << result.describe();
}

TEST(BenchDevice, PairsInARowOnVirtualRanks) {
  if (!has_gpu()) GTEST_SKIP() << "this machine has no GPU";
  const auto json = bench_json({"--device", "cuda", "--ranks", "2", "--sizing", "capacity", "--capacity-rows", "40",
                                "--chain", "12", "--replays", "100"});
  EXPECT_EQ(json.at("verification"), "passed");
  ASSERT_EQ(json.at("chain").size(), 2U);
  EXPECT_EQ(json.at("chain")[0].at("in_graph"), true);
  EXPECT_EQ(json.at("chain")[1].at("in_graph"), false);
  for (const auto& chain : json.at("chain")) {
    EXPECT_EQ(chain.at("pairs"), 12);
    EXPECT_EQ(chain.at("samples"), 2);
    EXPECT_GT(chain.at("median_us").get<double>(), 0.0);
  }
  ASSERT_EQ(json.at("replays").size(), 1U);
  EXPECT_EQ(json.at("replays")[0].at("replays"), 100);
  EXPECT_EQ(json.at("replays")[0].at("samples"), 100);
  EXPECT_GT(json.at("replays")[0].at("median_us").get<double>(), 0.0);
}

TEST(BenchDevice, DispatchesByTheHostsClock) {
  if (!has_gpu()) GTEST_SKIP() << "this machine has no GPU";
  for (const std::string sizing : {"exact", "capacity"}) {
    std::vector<std::string> options = {"--device", "cuda", "--ranks", "2", "--sizing", sizing, "--host-calls", "20"};
    if (sizing == "capacity") options.insert(options.end(), {"--capacity-rows", "40"});
    const auto json = bench_json(options);
    EXPECT_EQ(json.at("verification"), "passed");
    ASSERT_EQ(json.at("host_calls").size(), 1U);
    const auto& calls = json.at("host_calls")[0];
    EXPECT_EQ(calls.at("dispatches"), 20);
    EXPECT_EQ(calls.at("samples"), 20);
    EXPECT_GT(calls.at("min_us").get<double>(), 0.0);
    EXPECT_LE(calls.at("median_us").get<double>(), calls.at("p90_us").get<double>());
  }
}

TEST(BenchDevice, PaddingCanStayAsItIs) {
  expect_rejected({"--no-zero-padding"}, "--no-zero-padding needs padding");
  const auto padded = bench_json({"--layout", "expert_major", "--alignment", "8"});
  EXPECT_EQ(padded.at("config").at("zero_padding"), true);
  const auto unpadded = bench_json({"--layout", "expert_major", "--alignment", "8", "--no-zero-padding", "--dispatcher",
                                    "direct,alltoall,reference"});
  EXPECT_EQ(unpadded.at("verification"), "passed");
  EXPECT_EQ(unpadded.at("config").at("zero_padding"), false);
  EXPECT_GT(unpadded.at("load").at("padding_rows"), 0);
  const auto slots = bench_json({"--layout", "expert_blocks", "--capacity-rows", "60", "--no-zero-padding"});
  EXPECT_EQ(slots.at("verification"), "passed");
}

TEST(BenchDevice, JsonOfTheHostSaysHowItWasMade) {
  const auto json = bench_json({"--seed", "3"});
  EXPECT_TRUE(json.at("command").get<std::string>().starts_with("epistle bench --hidden 64 ")) << json.at("command");
  EXPECT_NE(json.at("command").get<std::string>().find(" --seed 3 "), std::string::npos) << json.at("command");
  EXPECT_FALSE(json.at("commit").get<std::string>().empty());
  EXPECT_TRUE(json.at("gpu").is_null());
  EXPECT_TRUE(json.at("config").at("sms").is_null());
  EXPECT_TRUE(json.at("config").at("mover").is_null());
  for (const auto& result : json.at("results")) {
    EXPECT_LE(result.at("min_us").get<double>(), result.at("p10_us").get<double>());
    EXPECT_LE(result.at("p10_us").get<double>(), result.at("median_us").get<double>());
    EXPECT_LE(result.at("median_us").get<double>(), result.at("p90_us").get<double>());
    EXPECT_LE(result.at("p90_us").get<double>(), result.at("p99_us").get<double>());
  }
}

}  // namespace
}  // namespace epistle::test
