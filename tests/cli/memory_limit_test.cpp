// Commands where a control group has less memory than a run needs, or than what somebody else's file would take.
#include <fstream>
#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "cli/epistle_command.hpp"
#include "support/control_group.hpp"
#include "support/trace_files.hpp"

namespace epistle::test {
namespace {

constexpr std::int64_t kLimitBytes = std::int64_t{256} << 20;

class BenchMemoryLimit : public ::testing::TestWithParam<std::tuple<int, std::string>> {
 protected:
  [[nodiscard]] CommandResult run(const ControlGroup& limited, int tokens_of_all) const {
    const auto& [num_ranks, how] = GetParam();
    const std::string ranks = std::to_string(num_ranks);
    std::vector<std::string> command = {"sh", "-c", "echo 0 > " + limited.door() + " && exec \"$@\"", "sh", kEpistle};
    const auto add = [&](const std::vector<std::string>& more) {
      command.insert(command.end(), more.begin(), more.end());
    };
    if (how == "run") add({"run", "-n", ranks, "--", kEpistle});
    add({"bench", "--hidden", "4096", "--experts", "64", "--top-k", "8", "--iters", "1", "--warmup", "0", "--tokens",
         std::to_string(tokens_of_all / num_ranks)});
    if (how != "run") add({"--ranks", ranks, "--group", how});
    return run_command(command, without_settings());
  }
};

TEST_P(BenchMemoryLimit, IsAnErrorAndNoKill) {
  const ControlGroup limited(kLimitBytes);
  if (!limited.missing().empty()) GTEST_SKIP() << limited.missing();
  const CommandResult large = run(limited, 16'384);
  EXPECT_EQ(large.exit_code, 5) << large.describe();
  EXPECT_NE(large.err.find("out of memory"), std::string::npos) << large.err;
  EXPECT_NE(large.err.find("of the 256 MiB of this control group are available"), std::string::npos) << large.err;
  const CommandResult small = run(limited, 640);
  EXPECT_EQ(small.exit_code, 0) << small.describe();
  EXPECT_EQ(limited.num_kills(), 0);
}

INSTANTIATE_TEST_SUITE_P(All, BenchMemoryLimit,
                         ::testing::Combine(::testing::Values(2, 8), ::testing::Values("threads", "processes", "run")),
                         [](const auto& param_info) {
                           return std::get<1>(param_info.param) + "_" + std::to_string(std::get<0>(param_info.param));
                         });

// ---- Inputs ---------------------------------------------------------------------------------------------------------

class InputMemoryLimit : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!limited_.missing().empty()) GTEST_SKIP() << limited_.missing();
  }

  [[nodiscard]] std::string write_repeated(const std::string& name, const std::string& head, const std::string& part,
                                           int times, const std::string& tail) const {
    std::string text = head;
    for (int idx = 0; idx < times; ++idx) text += part;
    return dir_.write(name, text + tail);
  }

  void expect_refused(const std::string& arguments, const std::string& what) const {
    const CommandResult result = run_command(
        {"sh", "-c", "echo 0 > " + limited_.door() + " && exec '" + kEpistle + "' " + arguments}, without_settings());
    EXPECT_EQ(result.exit_code, 5) << arguments << result.describe();
    EXPECT_TRUE(is_error_line(result.err, "out of memory: " + what)) << result.describe();
    EXPECT_EQ(limited_.num_kills(), 0) << arguments;
  }

  TempDir dir_;
  ControlGroup limited_{std::int64_t{96} << 20};
};

TEST_F(InputMemoryLimit, IsAskedBeforeATableOfRoutingIsMade) {
  expect_refused("simulate --experts 65536 --top-k 65536 --tokens 4096 --ranks 8", "routing tables need 2147483648");
}

TEST_F(InputMemoryLimit, IsAskedWhileTokensOfATraceAreKept) {
  constexpr int kTokensOfPart = 1 << 19;
  constexpr int kNumParts = 20;
  std::string part;
  for (int token = 0; token < kTokensOfPart; ++token) part += "[0,1],";
  const std::string packed = gzip(part);
  const std::string path = dir_.file("bomb.jsonl.gz");
  std::ofstream file(path, std::ios::binary);
  file << gzip(R"({"layer":1,"num_experts":8,"top_k":2,"num_tokens":)" + std::to_string(kNumParts * kTokensOfPart + 1) +
               R"(,"expert_ids":[)");
  for (int idx = 0; idx < kNumParts; ++idx) file << packed;
  file << gzip("[0,1]]}\n");
  file.close();
  expect_refused("balance 'trace:" + path + "' --ranks 2", "the tokens kept of a trace need");
}

TEST_F(InputMemoryLimit, IsAskedWhileADocumentIsRead) {
  const std::string lists = write_repeated("lists.json", "[", "[],", 1 << 21, "[]]");
  expect_refused("balance --loads '" + lists + "' --ranks 2", "the values of a JSON document need");
  expect_refused("plan --cluster '" + lists + "'", "the values of a JSON document need");
}

TEST_F(InputMemoryLimit, IsAskedWhileRowsAreRead) {
  const std::string rows = write_repeated("rows.csv", "", "1\n", 1 << 21, "");
  expect_refused("balance --loads '" + rows + "' --ranks 1", "the loads of a file need");
}

TEST_F(InputMemoryLimit, IsAskedBeforeTheNumbersOfAFileAreTaken) {
  const std::string head = R"({'descr': '|i1', 'fortran_order': False, 'shape': (33554432,), })";
  const std::string length{static_cast<char>(head.size() + 1), '\0'};
  const std::string numbers = write_repeated("loads.npy", "\x93NUMPY\x01" + std::string(1, '\0') + length + head + "\n",
                                             std::string(1024, '\0'), 1 << 15, "");
  expect_refused("balance --loads '" + numbers + "' --ranks 1", "the numbers of a .npy file need 268435456");
}

}  // namespace
}  // namespace epistle::test
