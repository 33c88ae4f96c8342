// Many small cases that mostly wait, spread over a few forked processes.
#pragma once

#include <csignal>
#include <functional>
#include <iostream>
#include <string>
#include <vector>

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>

#include "support/process_ranks.hpp"
#include "support/temp_dir.hpp"

namespace epistle::testing {

inline constexpr int kNumShards = 10;
/// A shard that has found this many problems stops: code that is wrong everywhere must not keep the machine for hours.
inline constexpr int kMaxProblemsPerShard = 5;

/// Calls `body` for every case, in some process; returns what it said of the cases where it said something. The caller
/// must not have threads.
inline std::vector<std::string> run_sharded(std::size_t num_cases,
                                            const std::function<std::string(std::size_t)>& body) {
  if (num_cases == 0) return {};
  const test::TempDir dir;
  std::vector<pid_t> pids;
  for (int shard = 0; shard < kNumShards; ++shard) {
    std::cout.flush();
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      std::string found;
      int num_problems = 0;
      for (auto idx = static_cast<std::size_t>(shard); idx < num_cases && num_problems < kMaxProblemsPerShard;
           idx += kNumShards) {
        std::string problem = body(idx);
        if (problem.empty() && ::waitpid(-1, nullptr, WNOHANG) != -1) problem = "processes are left";
        if (problem.empty()) continue;
        ++num_problems;
        found += problem + '\0';
      }
      dir.write(std::to_string(shard), found);
      ::_exit(0);
    }
    pids.push_back(pid);
  }
  std::vector<std::string> problems;
  for (std::size_t shard = 0; shard < pids.size(); ++shard) {
    if (const int exit_code = wait_for(pids[shard]); exit_code != 0) {
      problems.push_back(fmt::format("shard {} exited with {}", shard, exit_code));
      continue;
    }
    const std::string found = test::read_file(dir.file(std::to_string(shard)));
    for (std::size_t begin = 0; begin < found.size();) {
      const std::size_t end = found.find('\0', begin);
      problems.push_back(found.substr(begin, end - begin));
      begin = end + 1;
    }
  }
  return problems;
}

}  // namespace epistle::testing
