// How the commands that measure start their ranks.
#pragma once

#include <functional>

#include "epistle/group.hpp"

#include "bench_options.hpp"
#include "bench_plan.hpp"
#include "measure/bench_types.hpp"
#include "report/progress.hpp"

namespace epistle::cli {

/// What a rank does with the plan; returns its exit code.
using RankWork =
    std::function<int(Group& group, const BenchPlan& plan, const BenchOptions& options, Progress& progress)>;

/// Starts the ranks that the options ask for, as threads or processes, or is one of those that a launcher started, and
/// has each do `work`. Returns the exit code.
[[nodiscard]] int run_ranks(const BenchOptions& options, const RankWork& work);

/// How `run_ranks` of a process that no launcher started would do it.
struct RanksToStart {
  int num_ranks = 1;
  GroupKind group = GroupKind::kThreads;
};
[[nodiscard]] RanksToStart ranks_to_start(const BenchOptions& options);

/// Collective: runs the plan on its device. Rank 0 shows how far they are.
[[nodiscard]] BenchResult run_planned(Group& group, const BenchPlan& plan, Progress& progress);

}  // namespace epistle::cli
