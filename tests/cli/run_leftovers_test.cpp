// Whatever the ranks start is gone when the command has ended, however it ended.
#include <csignal>
#include <cstdlib>
#include <string>
#include <vector>

#include <unistd.h>

#include <gtest/gtest.h>

#include "cli/epistle_command.hpp"
#include "cli/run_processes.hpp"

namespace epistle::test {
namespace {

/// A way for a rank to have processes, each of which says "pid N". Ends with "ready RANK".
struct Program {
  std::string name;
  std::string script;
  bool needs_root = false;
};

const std::string kWait = "echo ready $RANK; wait";

std::vector<Program> programs() {
  return {
      {.name = "wrapper", .script = "sleep 100 & echo pid $!; " + kWait},
      {.name = "session", .script = "setsid sh -c 'echo pid $$; exec sleep 100' & sleep 0.1; " + kWait},
      {.name = "daemon",
       .script = "(setsid sh -c 'sleep 100 & echo pid $!; echo pid $$; wait' &); sleep 0.1; "
                 "sleep 100 & echo pid $!; " +
                 kWait},
      {.name = "deaf",
       .script = "trap '' TERM INT HUP; (setsid sh -c 'echo pid $$; sleep 100; sleep 100' &); sleep 0.1; sleep 100 & "
                 "echo pid $!; " +
                 kWait},
      {.name = "other user",
       .script = "exec setpriv --reuid 65534 --clear-groups sh -c 'echo pid $$; sleep 100 & echo pid $!; echo ready "
                 "$RANK; wait'",
       .needs_root = true},
  };
}

enum class Ending { kKillLauncher, kKillGroup, kKillKeeper, kStopKeeperKillLauncher, kTerminate, kKillRank };

class RunLeftovers : public ::testing::TestWithParam<Ending> {};

TEST_P(RunLeftovers, NothingIsLeft) {
  for (const Program& program : programs()) {
    SCOPED_TRACE(program.name);
    if (program.needs_root && ::geteuid() != 0) continue;
    Subprocess process(epistle_command({"run", "-n", "2", "--grace", "0.1", "--", "sh", "-c", program.script}),
                       without_settings());
    ASSERT_TRUE(process.wait_for_output("ready 0") && process.wait_for_output("ready 1")) << process.err();
    const pid_t keeper = keeper_of(process.pid());
    ASSERT_NE(keeper, 0);
    const std::string out = process.out();
    const auto pids = pids_in(out);
    ASSERT_GE(pids.size(), 2U) << out;
    switch (GetParam()) {
      case Ending::kKillLauncher:
        process.send_signal(SIGKILL);
        break;
      case Ending::kKillGroup:
        ::kill(-process.pid(), SIGKILL);
        break;
      case Ending::kKillKeeper:
        ::kill(keeper, SIGKILL);
        break;
      case Ending::kStopKeeperKillLauncher:
        ::kill(keeper, SIGSTOP);
        process.send_signal(SIGKILL);
        break;
      case Ending::kTerminate:
        process.send_signal(SIGTERM);
        break;
      case Ending::kKillRank:
        ::kill(children_of(keeper).at(0), SIGKILL);
        break;
    }
    const CommandResult result = process.wait();
    EXPECT_FALSE(result.timed_out);
    for (const pid_t pid : pids) {
      // A command that ended by itself has seen them go; one that was killed has left that to its keeper.
      EXPECT_TRUE(result.signal == 0 ? !is_alive(pid) : ends_soon(pid)) << pid << "\n" << result.describe();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Endings, RunLeftovers,
                         ::testing::Values(Ending::kKillLauncher, Ending::kKillGroup, Ending::kKillKeeper,
                                           Ending::kStopKeeperKillLauncher, Ending::kTerminate, Ending::kKillRank));

TEST(RunLeftovers, KilledKeeperIsReported) {
  Subprocess process(epistle_command({"run", "-n", "1", "--", "sh", "-c", "echo ready; sleep 100 & wait"}),
                     without_settings());
  ASSERT_TRUE(process.wait_for_output("ready"));
  const pid_t keeper = keeper_of(process.pid());
  ASSERT_NE(keeper, 0);
  ::kill(keeper, SIGKILL);
  const CommandResult result = process.wait();
  EXPECT_EQ(result.exit_code, 5) << result.describe();
  EXPECT_TRUE(is_error_line(result.err, "was killed by signal 9")) << result.err;
}

TEST(RunLeftovers, WhatARankLeavesBehindIsToldToEndAtTheEnd) {
  // Rank 1 still needs what rank 0 started when rank 0 has long ended.
  const CommandResult result = run_epistle({"run", "-n", "2", "--", "sh", "-c",
                                            "if [ $RANK = 0 ]; then setsid sh -c 'trap \"echo told; exit\" TERM; echo "
                                            "pid $$; while :; do sleep 0.02; done' & "
                                            "exit 0; fi; sleep 0.5; echo rank 1 ends"});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  const auto pids = pids_in(result.out);
  ASSERT_EQ(pids.size(), 1U) << result.out;
  EXPECT_FALSE(is_alive(pids[0]));
  EXPECT_TRUE(result.out.ends_with("rank 1 ends\ntold\n")) << result.out;
}

TEST(RunLeftovers, ProcessesOfTheCallerStay) {
  // The shell's child is a child of the command that replaces the shell, and none of its business.
  const std::string script =
      "sleep 100 & echo mine $!; exec " + kEpistle + " run -n 1 -- sh -c 'kill -9 $PPID; sleep 100'";
  const CommandResult result = run_command({"sh", "-c", script}, without_settings());
  EXPECT_EQ(result.exit_code, 5) << result.describe();
  ASSERT_TRUE(result.out.starts_with("mine ")) << result.out;
  const pid_t mine = static_cast<pid_t>(std::atoi(result.out.c_str() + 5));
  EXPECT_TRUE(is_alive(mine));
  ::kill(mine, SIGKILL);
}

}  // namespace
}  // namespace epistle::test
