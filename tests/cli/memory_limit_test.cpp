// `epistle bench` where a control group has less memory than the run needs.
#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "cli/epistle_command.hpp"
#include "support/control_group.hpp"

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

}  // namespace
}  // namespace epistle::test
