// What `epistle bench` says when something is wrong: one line, and an exit code that tells the kind.
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "cli/bench_run.hpp"

namespace epistle::test {
namespace {

struct WrongUse {
  std::vector<std::string> options;
  int exit_code;
  std::string part;  ///< of the error line
};

class BenchErrors : public ::testing::TestWithParam<std::string> {
 protected:
  void expect_errors(const std::vector<WrongUse>& uses) const {
    for (const WrongUse& use : uses) {
      std::vector<std::string> options = use.options;
      options.insert(options.end(), {"--ranks", "3", "--group", GetParam()});
      const CommandResult result = run_bench(options);
      EXPECT_EQ(result.exit_code, use.exit_code) << ::testing::PrintToString(use.options) << result.describe();
      EXPECT_TRUE(is_error_line(result.err, use.part)) << use.part << result.describe();
      EXPECT_EQ(result.out, "") << ::testing::PrintToString(use.options);
    }
  }
};

TEST_P(BenchErrors, WrongValues) {
  expect_errors(
      {{{"--dispatcher", "direct,foo"}, 2, "'foo'; there are direct, low_latency, auto, alltoall, hybrid, reference"},
       {{"--dispatcher", "direct,alltoall,direct"}, 2, "'direct' twice"},
       {{"--dtype", "fp4"}, 2, "--dtype is 'fp4'; it takes bf16, fp16, fp32, fp8"},
       {{"--wire", "fp4"}, 2, "--wire is 'fp4'; it takes as-given, fp8, fp8-columns, fp8-pow2, fp8-ue8m0"},
       {{"--layout", "rows"}, 2, "--layout is 'rows'"},
       {{"--combine", "tree"}, 2, "--combine is 'tree'; it takes deepep_v2, domains, flat, hierarchical"},
       {{"--weights", "yes"}, 2, "--weights is 'yes'; it takes off, on"},
       {{"--sizing", "huge"}, 2, "--sizing is 'huge'"},
       {{"--routing", "zip:1"}, 2, "routing 'zip:1'"},
       {{"--routing", "zipf:-1"}, 2, "zipf:-1"},
       {{"--model", "nonsense"}, 2, "--model: model 'nonsense' is not known"},
       {{"--model", ""}, 2, "--model"},
       {{"--json", ""}, 2, "--json"},
       {{"--seed", "-1"}, 2, "--seed"},
       {{"--workers", "0"}, 2, "--workers"},
       {{"--workers", "2000"}, 2, "--workers is '2000'"},
       {{"--drop-capacity", "0"}, 2, "--drop-capacity"},
       {{"--drop-capacity", "inf"}, 2, "--drop-capacity"},
       {{"--drop-capacity", "nan"}, 2, "--drop-capacity is 'nan'"},
       {{"--capacity-rows", "0"}, 2, "--capacity-rows"},
       {{"--layer", "-2"}, 2, "--layer"},
       {{"--nonsense"}, 2, "--nonsense"}});
}

TEST_P(BenchErrors, ValuesThatDoNotGoTogether) {
  expect_errors(
      {{{"--layout", "expert_major", "--alignment", "2000"}, 2, "--alignment is '2000'"},
       {{"--wire", "fp8", "--dtype", "fp16"}, 2, "--wire fp8 quantises rows of --dtype bf16; they are fp16"},
       {{"--alignment", "4"}, 2, "--alignment pads the groups of --layout expert_major"},
       {{"--layer", "1"}, 2, "--layer chooses a layer of a trace"},
       {{"--layout", "expert_blocks"}, 2, "--layout expert_blocks needs --capacity-rows"},
       {{"--sizing", "capacity"}, 2, "--sizing capacity needs --capacity-rows"},
       {{"--capacity-rows", "9"}, 2, "--capacity-rows belongs to"},
       {{"--overflow", "drop"}, 2, "--overflow belongs to"},
       {{"--layout", "expert_blocks", "--capacity-rows", "9", "--overflow", "some"}, 2, "--overflow is 'some'"},
       {{"--drop-policy", "prob"}, 2, "--drop-policy needs --drop-capacity"},
       {{"--drop-capacity", "1", "--drop-policy", "best"}, 2, "--drop-policy is 'best'"},
       {{"--pad-to-capacity"}, 2, "--pad-to-capacity needs --drop-capacity"},
       {{"--drop-capacity", "1", "--pad-to-capacity"}, 2, "needs --layout expert_blocks without --capacity-rows"}});
}

TEST_P(BenchErrors, ShapesThatCannotBe) {
  for (const auto& [shape, part] : std::vector<std::pair<std::vector<std::string>, std::string>>{
           {{"--hidden", "2881"}, "pad hidden to 2888"},
           {{"--hidden", "20000000"}, "--hidden is '20000000'"},
           {{"--hidden", "0"}, "--hidden"},
           {{"--experts", "4", "--top-k", "5"}, "top_k is 5, expected 1 to num_experts = 4"},
           {{"--tokens", "-1"}, "--tokens"},
           {{"--tokens", "many"}, "--tokens"},
           {{"--iters", "0"}, "--iters"},
           {{"--iters", "2000000000"}, "--iters"}}) {
    std::vector<std::string> arguments = {"bench", "--group", GetParam()};
    arguments.insert(arguments.end(), shape.begin(), shape.end());
    const CommandResult result = run_epistle(arguments);
    EXPECT_EQ(result.exit_code, 2) << ::testing::PrintToString(shape) << result.describe();
    EXPECT_TRUE(is_error_line(result.err, part)) << part << result.describe();
  }
}

TEST_P(BenchErrors, CapacityThatIsExceeded) {
  expect_errors({{{"--sizing", "capacity", "--capacity-rows", "3"}, 1, "capacity exceeded"},
                 {{"--layout", "expert_blocks", "--capacity-rows", "1"}, 1, "capacity exceeded"}});
}

TEST_P(BenchErrors, RunsThatMemoryCannotHold) {
  for (const std::vector<std::string>& size : std::vector<std::vector<std::string>>{
           {"--tokens", "20000000", "--hidden", "65536", "--ranks", "100"},
           {"--tokens", "10", "--layout", "expert_blocks", "--capacity-rows", "16000000", "--hidden", "65536"}}) {
    std::vector<std::string> arguments = {"bench", "--group", GetParam(), "--experts", "64", "--top-k", "1"};
    arguments.insert(arguments.end(), size.begin(), size.end());
    const CommandResult result = run_epistle(arguments);
    EXPECT_EQ(result.exit_code, 5) << result.describe();
    EXPECT_TRUE(is_error_line(result.err, "out of memory: this run needs about ")) << result.describe();
  }
}

TEST_P(BenchErrors, JsonThatCannotBeWrittenIsFoundBeforeTheRun) {
  const TempDir dir;
  expect_errors({{{"--json", dir.file("no/such/folder.json")}, 5, "cannot write to "},
                 {{"--json", dir.path().string()}, 5, "Is a directory"}});
}

TEST_P(BenchErrors, FullDiskIsAnError) {
  const CommandResult result = run_bench({"--json", "/dev/full", "--group", GetParam()});
  EXPECT_EQ(result.exit_code, 5) << result.describe();
  EXPECT_TRUE(is_error_line(result.err, "/dev/full: No space left")) << result.describe();
}

INSTANTIATE_TEST_SUITE_P(Groups, BenchErrors, ::testing::Values("threads", "processes"),
                         [](const auto& test) { return test.param; });

TEST(BenchUsage, WrongGroupsAndRanks) {
  for (const std::vector<std::string>& options :
       std::vector<std::vector<std::string>>{{"--group", "fibers"}, {"--ranks", "0"}, {"--ranks", "2000"}, {"extra"}}) {
    const CommandResult result = run_bench(options);
    EXPECT_EQ(result.exit_code, 2) << result.describe();
    EXPECT_TRUE(is_error_line(result.err, options.front() == "extra" ? "extra" : options.front())) << result.err;
  }
}

}  // namespace
}  // namespace epistle::test
