#include "launch/launcher.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <iterator>
#include <string>
#include <vector>

#include <sys/wait.h>

#include <gtest/gtest.h>

#include "epistle/error.hpp"

#include "launch/child.hpp"
#include "launch/environment.hpp"
#include "support/environment.hpp"
#include "support/temp_dir.hpp"

namespace epistle {
namespace {

LaunchOptions shell(int num_ranks, const std::string& script) {
  LaunchOptions options;
  options.num_ranks = num_ranks;
  options.command = {"sh", "-c", script};
  return options;
}

std::ptrdiff_t num_open_files() {
  return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), std::filesystem::directory_iterator());
}

TEST(Launcher, RunsRanksAndReturnsTheirExitCode) {
  EXPECT_EQ(launch_ranks(shell(3, "exit 0")), 0);
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(launch_ranks(shell(2, "exit $((RANK * 5))")), 5);
  EXPECT_NE(::testing::internal::GetCapturedStderr().find("rank 1 (pid "), std::string::npos);
}

TEST(Launcher, LeavesNoProcessDescriptorOrSignalMaskBehind) {
  sigset_t before;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &before);
  const std::ptrdiff_t open_before = num_open_files();
  LaunchOptions options = shell(4, "exit 0");
  options.label_output = true;
  EXPECT_EQ(launch_ranks(options), 0);
  options.command = {"no-such-program-anywhere"};
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(launch_ranks(options), kExitCannotExecute);
  EXPECT_NE(::testing::internal::GetCapturedStderr().find("no-such-program-anywhere"), std::string::npos);

  EXPECT_EQ(num_open_files(), open_before);
  EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1);
  EXPECT_EQ(errno, ECHILD);
  sigset_t after;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &after);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    EXPECT_EQ(::sigismember(&before, signal), ::sigismember(&after, signal));
  }
}

TEST(Launcher, ExtraVariablesReachEveryRank) {
  LaunchOptions options = shell(2, "[ \"$ANSWER\" = 42 ]");
  options.environment = {{"ANSWER", "42"}};
  EXPECT_EQ(launch_ranks(options), 0);
}

TEST(Launcher, ExecutableMayDifferFromTheFirstArgument) {
  LaunchOptions options;
  options.command = {"renamed", "-c", "[ \"$0\" = renamed ]"};
  options.executable = find_program("sh");
  EXPECT_EQ(launch_ranks(options), 0);
}

TEST(Launcher, RejectsImpossibleOptions) {
  EXPECT_THROW(static_cast<void>(launch_ranks(shell(0, "true"))), Error);
  EXPECT_THROW(static_cast<void>(launch_ranks(LaunchOptions{})), Error);
}

TEST(Launcher, RelaunchesThisProgramWithItsArguments) {
  const LaunchOptions options = relaunch_options(3);
  EXPECT_EQ(options.num_ranks, 3);
  EXPECT_EQ(options.executable, "/proc/self/exe");
  ASSERT_FALSE(options.command.empty());
  EXPECT_NE(options.command[0].find("unit"), std::string::npos) << options.command[0];
}

TEST(LauncherEnvironment, FindsProgramsAsAShellDoes) {
  test::ScopedEnvironment environment;
  const test::TempDir dir;
  const std::string tool = dir.write("tool", "#!/bin/sh\n");
  environment.set("PATH", "/nonexistent:" + dir.path().string());
  EXPECT_THROW(static_cast<void>(find_program("tool")), Error);  // not executable yet
  std::filesystem::permissions(tool, std::filesystem::perms::owner_all);
  EXPECT_EQ(find_program("tool"), tool);
  EXPECT_EQ(find_program(tool), tool);
  EXPECT_THROW(static_cast<void>(find_program("")), Error);
  EXPECT_THROW(static_cast<void>(find_program(dir.path().string())), Error);  // a folder
}

TEST(LauncherEnvironment, SetsEachVariableOnce) {
  test::ScopedEnvironment environment;
  environment.set("RANK", "9");
  environment.set("RANKING", "kept");
  environment.set("EPISTLE_JOB", "outer");
  const auto entries = make_rank_environment({.rank = 2, .num_ranks = 4, .job = "inner", .extra = {{"EXTRA", "1"}}});
  const auto count = [&](const std::string& prefix) {
    return std::count_if(entries.begin(), entries.end(),
                         [&](const std::string& entry) { return entry.starts_with(prefix); });
  };
  EXPECT_EQ(count("RANK="), 1);
  EXPECT_EQ(count("RANK=2"), 1);
  EXPECT_EQ(count("WORLD_SIZE=4"), 1);
  EXPECT_EQ(count("EPISTLE_JOB=inner"), 1);
  EXPECT_EQ(count("EPISTLE_JOB=outer"), 0);
  EXPECT_EQ(count("RANKING=kept"), 1);
  EXPECT_EQ(count("EXTRA=1"), 1);
}

TEST(LauncherEnvironment, JobNamesAreRandom) {
  EXPECT_EQ(make_job_id().size(), 32U);
  EXPECT_NE(make_job_id(), make_job_id());
}

TEST(LauncherChild, DescribesHowAProcessEnded) {
  const ChildEnd exited{.by_signal = false, .value = 3};
  EXPECT_EQ(exited.describe(), "exited with code 3");
  EXPECT_EQ(exited.exit_code(), 3);
  EXPECT_TRUE(exited.failed());
  const ChildEnd killed{.by_signal = true, .value = SIGKILL};
  EXPECT_EQ(killed.describe(), "was killed by signal 9 (Killed)");
  EXPECT_EQ(killed.exit_code(), 137);
  EXPECT_FALSE((ChildEnd{.by_signal = false, .value = 0}).failed());
}

}  // namespace
}  // namespace epistle
