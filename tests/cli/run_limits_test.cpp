// What the system refuses while ranks are started, and ranks that end before the others have found them.
#include <chrono>
#include <string>
#include <vector>

#include <unistd.h>

#include <gtest/gtest.h>

#include "cli/bench_run.hpp"
#include "cli/run_processes.hpp"

namespace epistle::test {
namespace {

CommandResult run_bash(const std::string& script) { return run_command({"bash", "-c", script}, without_settings()); }

void expect_nothing_left(const CommandResult& result) {
  for (const pid_t pid : pids_in(result.out)) EXPECT_FALSE(is_alive(pid)) << result.describe();
}

TEST(RunLimits, TooFewDescriptorsEndAllThatWasStarted) {
  const CommandResult result =
      run_bash("ulimit -n 40; " + kEpistle + " run -n 64 --label -- sh -c 'echo pid $$; sleep 100 & wait'");
  EXPECT_EQ(result.exit_code, 5) << result.describe();
  EXPECT_TRUE(is_error_line(result.err, "Too many open files")) << result.err;
  expect_nothing_left(result);
}

TEST(RunLimits, TooFewProcessesEndAllThatWasStarted) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root, to become a user without processes";
  const CommandResult result = run_bash("cd /; exec setpriv --reuid 64321 --clear-groups bash -c 'ulimit -u 10; exec " +
                                        kEpistle + " run -n 32 -- sleep 100'");
  if (result.exit_code == 126 || result.exit_code == 127) GTEST_SKIP() << "another user cannot run the command here";
  EXPECT_EQ(result.exit_code, 5) << result.describe();
  EXPECT_TRUE(is_error_line(result.err, "fork failed: Resource temporarily unavailable")) << result.err;
}

TEST(RunLimits, RanksKeepTheSoftLimitThatTheLauncherExceeds) {
  const CommandResult result = run_bash("ulimit -S -n 32; " + kEpistle + " run -n 24 --label -- sh -c 'ulimit -n'");
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  const auto lines = split_lines(result.out);
  EXPECT_EQ(lines.size(), 24U);
  for (const std::string& line : lines) EXPECT_TRUE(line.ends_with(" 32")) << line;
}

TEST(RunLimits, UnprivilegedUserStartsManyRanks) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root, to become another user";
  const CommandResult result =
      run_bash("cd /; exec setpriv --reuid 64321 --clear-groups bash -c 'ulimit -n 1024; exec " + kEpistle +
               " run -n 128 --label -- true'");
  if (result.exit_code == 126 || result.exit_code == 127) GTEST_SKIP() << "another user cannot run the command here";
  EXPECT_EQ(result.exit_code, 0) << result.describe();
}

TEST(RunLimits, RankThatNeverJoinsDoesNotKeepTheOthersForTheTimeout) {
  std::string bench = kEpistle;
  for (const std::string& argument : bench_arguments({})) bench += " " + argument;
  const auto start = std::chrono::steady_clock::now();
  const CommandResult result =
      run_epistle({"run", "-n", "3", "--", "sh", "-c", "[ $RANK = 1 ] && exit 7; exec " + bench},
                  {.environment = {{"EPISTLE_TIMEOUT_MS", "60000"}}, .timeout = std::chrono::seconds(50)});
  EXPECT_EQ(result.exit_code, 7) << result.describe();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(15));
  EXPECT_NE(result.err.find("epistle: rank 1 (pid "), std::string::npos) << result.err;
  EXPECT_NE(result.err.find("exited with code 7"), std::string::npos) << result.err;
}

}  // namespace
}  // namespace epistle::test
