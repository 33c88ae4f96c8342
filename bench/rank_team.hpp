// Process ranks for Google Benchmark: this process is rank 0 and decides; the others follow.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <sys/types.h>

#include "epistle/group.hpp"

namespace epistle::bench {

class RankTeam {
 public:
  /// A step that all ranks run at once; collective calls are allowed in it.
  using Step = std::function<void()>;
  /// Called once on every rank after the group is joined; returns the steps that rank 0 can ask for, by number.
  using Setup = std::function<std::vector<Step>(Group&)>;

  /// Forks num_ranks - 1 children. The caller must not have threads.
  RankTeam(int num_ranks, const Setup& setup);
  /// Sends the others home and waits for them.
  ~RankTeam();
  RankTeam(const RankTeam&) = delete;
  RankTeam& operator=(const RankTeam&) = delete;

  /// Runs step `step_idx` on all ranks. Returns the microseconds from the first rank's start to the last rank's end.
  double run(int step_idx);

  [[nodiscard]] Group& group() noexcept { return group_; }

 private:
  RankTeam(int num_ranks, const Setup& setup, const std::string& job);
  static std::vector<pid_t> fork_followers(int num_ranks, const std::string& job, const Setup& setup);

  std::vector<pid_t> followers_;
  Group group_;
  std::vector<Step> steps_;
};

}  // namespace epistle::bench
