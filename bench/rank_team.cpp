#include "rank_team.hpp"

#include <atomic>
#include <cstdint>
#include <exception>
#include <iostream>
#include <utility>

#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>

#include "measure/span_timer.hpp"

namespace epistle::bench {
namespace {

constexpr std::int32_t kGoHome = -1;

std::string unique_job() {
  static std::atomic<int> next{0};
  return fmt::format("bench-{}-{}", ::getpid(), next.fetch_add(1));
}

/// Rank 0's order, told to all.
std::int32_t agree_on_order(Group& group, std::int32_t order) {
  std::vector<std::int32_t> orders(static_cast<std::size_t>(group.size()));
  group.all_gather(&order, sizeof(order), orders.data());
  return orders.front();
}

void follow(int rank, int num_ranks, const std::string& job, const RankTeam::Setup& setup) {
  Group group = join_process_group({.rank = rank, .num_ranks = num_ranks, .job = job});
  const std::vector<RankTeam::Step> steps = setup(group);
  SpanTimer timer(group);
  for (;;) {
    const std::int32_t order = agree_on_order(group, kGoHome);
    if (order == kGoHome) return;
    timer.time(steps[static_cast<std::size_t>(order)]);
  }
}

}  // namespace

std::vector<pid_t> RankTeam::fork_followers(int num_ranks, const std::string& job, const Setup& setup) {
  std::vector<pid_t> pids;
  for (int rank = 1; rank < num_ranks; ++rank) {
    std::cout.flush();
    const pid_t pid = ::fork();
    if (pid == 0) {
      int exit_code = 0;
      try {
        follow(rank, num_ranks, job, setup);
      } catch (const std::exception& error) {
        std::cerr << error.what() << std::endl;
        exit_code = 1;
      }
      ::_exit(exit_code);
    }
    pids.push_back(pid);
  }
  return pids;
}

namespace {

Group join_as_leader(int num_ranks, const std::string& job) {
  return join_process_group({.rank = 0, .num_ranks = num_ranks, .job = job});
}

}  // namespace

RankTeam::RankTeam(int num_ranks, const Setup& setup) : RankTeam(num_ranks, setup, unique_job()) {}

RankTeam::RankTeam(int num_ranks, const Setup& setup, const std::string& job)
    : followers_(fork_followers(num_ranks, job, setup)),
      group_(join_as_leader(num_ranks, job)),
      steps_(setup(group_)) {}

RankTeam::~RankTeam() {
  try {
    agree_on_order(group_, kGoHome);
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;  // a follower is gone; the others leave by themselves
  }
  for (const pid_t pid : followers_) ::waitpid(pid, nullptr, 0);
}

double RankTeam::run(int step_idx) {
  agree_on_order(group_, step_idx);
  return SpanTimer(group_).time(steps_[static_cast<std::size_t>(step_idx)]);
}

}  // namespace epistle::bench
