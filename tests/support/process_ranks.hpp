// Runs a function as every rank of a process group: forks one child per rank.
#pragma once

#include <atomic>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>

#include "epistle/group.hpp"

namespace epistle::testing {

/// A rendezvous name that no other test uses.
inline std::string unique_job() {
  static std::atomic<int> next{0};
  return fmt::format("test-{}-{}", ::getpid(), next.fetch_add(1));
}

inline constexpr int kThrewExit = 99;

/// Forks one child per rank. The caller must not have threads. `body` returns the child's exit code; an exception makes
/// it kThrewExit and is printed.
inline std::vector<pid_t> fork_ranks(int num_ranks, const std::function<int(Group&)>& body,
                                     const GroupOptions& options = {}) {
  const std::string job = unique_job();
  std::vector<pid_t> pids;
  for (int rank = 0; rank < num_ranks; ++rank) {
    std::cout.flush();
    const pid_t pid = ::fork();
    if (pid == 0) {
      int exit_code = kThrewExit;
      try {
        Group group = join_process_group({.rank = rank, .num_ranks = num_ranks, .job = job}, options);
        exit_code = body(group);
      } catch (const std::exception& error) {
        std::cerr << "rank " << rank << " threw: " << error.what() << std::endl;
      }
      ::_exit(exit_code);
    }
    pids.push_back(pid);
  }
  return pids;
}

/// The exit code of a child, or 128 + the signal that ended it.
/// Leaves its exit code to wait_for().
inline bool has_exited(pid_t pid) {
  siginfo_t info{};
  return ::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == pid;
}

inline int wait_for(pid_t pid) {
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

inline std::vector<int> run_process_ranks(int num_ranks, const std::function<int(Group&)>& body,
                                          const GroupOptions& options = {}) {
  std::vector<int> exits;
  for (const pid_t pid : fork_ranks(num_ranks, body, options)) exits.push_back(wait_for(pid));
  return exits;
}

}  // namespace epistle::testing
