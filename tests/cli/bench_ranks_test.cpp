// `epistle bench` with ranks that are processes: who starts them, and what becomes of the rest when one of them fails.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/bench_run.hpp"
#include "cli/run_processes.hpp"

namespace epistle::test {
namespace {

/// `epistle run -n N -- epistle bench ...`
CommandResult run_launched(int num_ranks, const std::vector<std::string>& options) {
  std::vector<std::string> command = {"run", "-n", std::to_string(num_ranks), "--", kEpistle};
  const std::vector<std::string> bench = bench_arguments(options);
  command.insert(command.end(), bench.begin(), bench.end());
  return run_epistle(command);
}

/// The lines of stderr that the ranks wrote, without that of the launcher.
std::vector<std::string> rank_errors(const std::string& err) {
  std::vector<std::string> lines = split_lines(err);
  lines.erase(std::remove_if(lines.begin(), lines.end(),
                             [](const std::string& line) { return line.starts_with("epistle: rank "); }),
              lines.end());
  return lines;
}

TEST(BenchRanks, ProcessesGiveTheSameBytesAsThreads) {
  const auto bytes_of = [](const std::string& group) {
    std::vector<std::int64_t> bytes;
    const auto json = bench_json({"--ranks", "4", "--group", group});
    EXPECT_EQ(json.at("verified"), true);
    EXPECT_EQ(json.at("config").at("group"), group);
    EXPECT_EQ(json.at("results").size(), 8U);
    for (const auto& result : json.at("results")) {
      bytes.push_back(result.at("algorithm_bytes"));
      bytes.push_back(result.at("wire_bytes"));
    }
    return bytes;
  };
  EXPECT_EQ(bytes_of("processes"), bytes_of("threads"));
}

TEST(BenchRanks, TakesTheRanksThatALauncherStarted) {
  for (const std::vector<std::string>& options :
       std::vector<std::vector<std::string>>{{}, {"--group", "processes"}, {"--ranks", "3"}}) {
    const CommandResult result = run_launched(3, options);
    ASSERT_EQ(result.exit_code, 0) << result.describe();
    EXPECT_EQ(result.err, "");
    EXPECT_NE(result.out.find("; 3 processes of 20 tokens each;"), std::string::npos) << result.out;
    EXPECT_EQ(result.out.find("verified: "), result.out.rfind("verified: ")) << result.out;  // once
  }
}

TEST(BenchRanks, ThreadsCanBeAskedForUnderALauncher) {
  const CommandResult result = run_launched(1, {"--group", "threads", "--ranks", "2"});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  EXPECT_NE(result.out.find("; 2 threads of 20 tokens each;"), std::string::npos) << result.out;
}

TEST(BenchRanks, RanksThatDisagreeWithTheLauncherAreOneError) {
  const CommandResult result = run_launched(3, {"--ranks", "2"});
  EXPECT_EQ(result.exit_code, 2) << result.describe();
  const auto errors = rank_errors(result.err);
  ASSERT_EQ(errors.size(), 1U) << result.err;
  EXPECT_TRUE(is_error_line(errors[0] + "\n", "--ranks is 2, but epistle started 3 ranks")) << errors[0];
}

TEST(BenchRanks, WrongOptionsAreOneErrorUnderALauncher) {
  const std::vector<std::pair<std::vector<std::string>, int>> wrong = {
      {{"--dtype", "fp4"}, 2},
      {{"--routing", "trace:/no/such/file"}, 3},
      {{"--json", "/no/such/folder/x"}, 5},
      {{"--sizing", "capacity", "--capacity-rows", "1"}, 1}};
  for (const auto& [options, exit_code] : wrong) {
    const CommandResult result = run_launched(4, options);
    EXPECT_EQ(result.exit_code, exit_code) << result.describe();
    const auto errors = rank_errors(result.err);
    ASSERT_EQ(errors.size(), 1U) << result.err;
    EXPECT_TRUE(errors[0].starts_with("epistle: error: ")) << errors[0];
  }
}

TEST(BenchRanks, DifferentOptionsAreFoundBeforeTheRun) {
  const auto run_with = [](const std::string& option) {
    std::string script = "exec '" + kEpistle + "'";
    for (const std::string& argument : bench_arguments({})) script += " " + argument;
    return run_epistle({"run", "-n", "3", "--", "sh", "-c", script + " " + option});
  };
  const CommandResult seed = run_with("--seed $((RANK == 2 ? 7 : 1))");
  EXPECT_EQ(seed.exit_code, 2) << seed.describe();
  ASSERT_EQ(rank_errors(seed.err).size(), 1U) << seed.err;
  EXPECT_NE(seed.err.find("--seed is '1' on rank 0 and '7' on rank 2"), std::string::npos) << seed.err;
  const CommandResult routing = run_with("--routing $([ $RANK = 1 ] && echo balanced || echo uniform)");
  EXPECT_EQ(routing.exit_code, 2) << routing.describe();
  EXPECT_NE(routing.err.find("--routing is 'uniform' on rank 0 and 'balanced' on rank 1"), std::string::npos)
      << routing.err;
  // What only rank 0 uses may differ.
  EXPECT_EQ(run_with("$([ $RANK = 0 ] && echo --quiet)").exit_code, 0);
}

TEST(BenchRanks, TorchrunsVariablesAreEnough) {
  const std::string script = "for r in 1 0; do RANK=$r WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 MASTER_PORT=$$ '" + kEpistle +
                             "' bench --hidden 64 --tokens 8 --iters 1 & done; wait";
  const CommandResult result = run_command({"sh", "-c", script}, without_settings());
  EXPECT_EQ(result.err, "");
  EXPECT_NE(result.out.find("; 2 processes of 8 tokens each;"), std::string::npos) << result.describe();
  EXPECT_TRUE(has_line_starting_with(result.out, "verified: ")) << result.out;
}

TEST(BenchRanks, MalformedVariablesAreAnError) {
  const CommandResult result = run_bench({}, {.environment = {{"RANK", "5"}, {"WORLD_SIZE", "2"}}, .unset = {}});
  EXPECT_EQ(result.exit_code, 2) << result.describe();
  EXPECT_TRUE(is_error_line(result.err, "RANK is '5'")) << result.err;
}

// ---- Ranks that end -------------------------------------------------------------------------------------------------

/// The process below `launcher` that plays `rank`.
std::optional<pid_t> find_rank(pid_t launcher, int rank) {
  for (const pid_t pid : children_of(keeper_of(launcher))) {
    std::ifstream environment_file("/proc/" + std::to_string(pid) + "/environ", std::ios::binary);
    const std::string environment(std::istreambuf_iterator<char>(environment_file), {});
    const std::string variable = std::string(1, '\0') + "RANK=" + std::to_string(rank) + '\0';
    if ((std::string(1, '\0') + environment).find(variable) != std::string::npos) return pid;
  }
  return std::nullopt;
}

/// A benchmark of three ranks that runs for longer than any test waits.
class LongBench {
 public:
  LongBench()
      : process_(epistle_command({"bench", "--group", "processes", "--ranks", "3", "--hidden", "64", "--tokens", "64",
                                  "--iters", "1000000"}),
                 without_settings()) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (ranks_.size() < 3 && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      ranks_.clear();
      for (int rank = 0; rank < 3; ++rank) {
        if (const auto pid = find_rank(process_.pid(), rank)) ranks_.push_back(*pid);
      }
    }
    // Into the middle of the run; a rank that ends earlier must be noticed as well.
    std::this_thread::sleep_for(std::chrono::milliseconds(700));
  }
  [[nodiscard]] bool started() const { return ranks_.size() == 3; }
  [[nodiscard]] pid_t rank(std::size_t idx) const { return ranks_[idx]; }
  [[nodiscard]] Subprocess& process() { return process_; }
  [[nodiscard]] bool all_gone() const {
    return std::none_of(ranks_.begin(), ranks_.end(), [](pid_t pid) { return ::kill(pid, 0) == 0; });
  }

 private:
  Subprocess process_;
  std::vector<pid_t> ranks_;
};

TEST(BenchRanks, KilledRankIsNamedAndNothingStays) {
  for (const std::size_t victim : {0U, 1U}) {
    LongBench bench;
    ASSERT_TRUE(bench.started()) << bench.process().err();
    ::kill(bench.rank(victim), SIGKILL);
    const CommandResult result = bench.process().wait();
    EXPECT_FALSE(result.timed_out);
    EXPECT_EQ(result.exit_code, 128 + SIGKILL) << result.describe();
    EXPECT_NE(result.err.find("epistle: rank " + std::to_string(victim) + " (pid "), std::string::npos) << result.err;
    EXPECT_NE(result.err.find("was killed by signal 9"), std::string::npos) << result.err;
    // One survivor reports, not each.
    const auto errors = rank_errors(result.err);
    ASSERT_EQ(errors.size(), 1U) << result.err;
    EXPECT_NE(errors[0].find("rank " + std::to_string(victim) + " has exited or left the group"), std::string::npos)
        << errors[0];
    EXPECT_EQ(result.out, "");
    EXPECT_TRUE(bench.all_gone());
  }
}

TEST(BenchRanks, InterruptEndsAllRanks) {
  LongBench bench;
  ASSERT_TRUE(bench.started()) << bench.process().err();
  bench.process().send_signal(SIGINT);
  const CommandResult result = bench.process().wait();
  EXPECT_FALSE(result.timed_out);
  EXPECT_EQ(result.exit_code, 128 + SIGINT) << result.describe();
  EXPECT_TRUE(bench.all_gone());
}

}  // namespace
}  // namespace epistle::test
