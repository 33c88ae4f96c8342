// What happens to the ranks when the launcher is told to end, or is killed.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "cli/epistle_command.hpp"
#include "cli/run_processes.hpp"

namespace epistle::test {
namespace {

/// A launcher whose two ranks have printed "pid ..." lines and then "ready".
class RunningJob {
 public:
  RunningJob(const std::string& setup, const std::string& wait) {
    const std::string script = setup + "; echo pid $$; echo ready $RANK; " + wait;
    process_ =
        std::make_unique<Subprocess>(epistle_command({"run", "-n", "2", "--", "sh", "-c", script}), without_settings());
    started_ = process_->wait_for_output("ready 0") && process_->wait_for_output("ready 1");
  }
  [[nodiscard]] bool started() const { return started_; }
  [[nodiscard]] Subprocess& process() { return *process_; }

 private:
  std::unique_ptr<Subprocess> process_;
  bool started_ = false;
};

TEST(RunSignals, SigtermLeavesNoProcess) {
  // The shells' own children must go, too.
  RunningJob job("sleep 100 & echo pid $!", "wait");
  ASSERT_TRUE(job.started()) << job.process().err();
  const auto pids = pids_in(job.process().out());
  ASSERT_EQ(pids.size(), 4U) << job.process().out();
  job.process().send_signal(SIGTERM);
  const CommandResult result = job.process().wait();
  EXPECT_EQ(result.exit_code, 128 + SIGTERM) << result.describe();
  for (const pid_t pid : pids) EXPECT_TRUE(ends_soon(pid)) << pid;
}

TEST(RunSignals, SigtermKillsRanksThatIgnoreIt) {
  RunningJob job("trap '' TERM", "while true; do sleep 1; done");
  ASSERT_TRUE(job.started()) << job.process().err();
  const auto pids = pids_in(job.process().out());
  ASSERT_EQ(pids.size(), 2U);
  job.process().send_signal(SIGTERM);
  const CommandResult result = job.process().wait();
  EXPECT_EQ(result.exit_code, 128 + SIGTERM) << result.describe();
  for (const pid_t pid : pids) EXPECT_TRUE(ends_soon(pid)) << pid;
}

TEST(RunSignals, SigintReachesEveryRankOnce) {
  RunningJob job("n=0; trap 'n=$((n+1)); echo interrupted $n' INT", "while [ $n -lt 1 ]; do sleep 0.05; done; exit 0");
  ASSERT_TRUE(job.started()) << job.process().err();
  job.process().send_signal(SIGINT);
  const CommandResult result = job.process().wait();
  EXPECT_EQ(result.exit_code, 128 + SIGINT) << result.describe();
  const auto lines = split_lines(result.out);
  EXPECT_EQ(std::count(lines.begin(), lines.end(), "interrupted 1"), 2) << result.out;
}

TEST(RunSignals, SecondSigintInsists) {
  RunningJob job("trap '' INT", "while true; do sleep 0.05; done");
  ASSERT_TRUE(job.started()) << job.process().err();
  job.process().send_signal(SIGINT);
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_TRUE(is_alive(job.process().pid()));
  job.process().send_signal(SIGINT);
  EXPECT_EQ(job.process().wait().exit_code, 128 + SIGINT);
}

TEST(RunSignals, GraceBoundsSigintToo) {
  Subprocess process(epistle_command({"run", "-n", "2", "--grace", "0.2", "--", "sh", "-c",
                                      "trap '' INT; echo ready $RANK; while true; do sleep 0.05; done"}),
                     without_settings());
  ASSERT_TRUE(process.wait_for_output("ready 0") && process.wait_for_output("ready 1")) << process.err();
  const auto start = std::chrono::steady_clock::now();
  process.send_signal(SIGINT);
  const CommandResult result = process.wait();
  EXPECT_EQ(result.exit_code, 128 + SIGINT) << result.describe();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  EXPECT_NE(result.err.find("ranks 0, 1 still ran 200 ms after SIGINT"), std::string::npos) << result.err;
}

TEST(RunSignals, RanksDieWithAKilledLauncher) {
  RunningJob job("true", "exec sleep 100");
  ASSERT_TRUE(job.started()) << job.process().err();
  const auto pids = pids_in(job.process().out());
  ASSERT_EQ(pids.size(), 2U);
  job.process().send_signal(SIGKILL);
  EXPECT_EQ(job.process().wait().signal, SIGKILL);
  for (const pid_t pid : pids) EXPECT_TRUE(ends_soon(pid)) << pid;
}

}  // namespace
}  // namespace epistle::test
