#include "bench_flow.hpp"

#include <algorithm>
#include <cstddef>
#include <string>

#include "epistle/error.hpp"

#include "bench_ranks.hpp"
#include "dispatch/call/build_parts.hpp"
#include "exit_codes.hpp"
#include "group/limits.hpp"
#include "launch/launcher.hpp"
#include "measure/cuda/cuda_bench.hpp"
#include "measure/dispatch_bench.hpp"

namespace epistle::cli {
namespace {

constexpr int kDefaultRanks = 2;

BenchResult run_on_device(Group& group, const BenchSpec& spec, const RoutingTable& table,
                          const BenchProgress& progress) {
  if (spec.device == Device::kHost) return run_dispatch_bench(group, spec, table, progress);
#if EPISTLE_HAS_CUDA
  return run_cuda_bench(group, spec, table, progress);
#else
  throw Error(ErrorCode::kUnsupported, "--device cuda: " + std::string(kLackOfCuda));
#endif
}

int run_threads(const BenchOptions& options, int num_ranks, const RankWork& work) {
  options.targets.check();
  Progress progress("preparing", options.quiet);
  BenchPlan plan = make_bench_plan(options, num_ranks, GroupKind::kThreads);
  require_device(plan);
  add_expectation(options, plan);
  int exit_code = kExitOk;
  const auto play = [&](Group& group) {
    const int code = work(group, plan, options, progress);
    if (group.rank() == 0) exit_code = code;
  };
  run_thread_ranks(num_ranks, play, {.domain_size = plan.spec.domain_size});
  return exit_code;
}

/// This process is one of the ranks that a launcher started.
int run_rank(const BenchOptions& options, const RankWork& work) {
  const LaunchInfo info = read_launch_info();
  Progress progress("preparing", options.quiet || info.rank != 0);
  return run_launched_rank(info, options,
                           [&](Group& group, const BenchPlan& plan) { return work(group, plan, options, progress); });
}

int start_processes(const BenchOptions& options, int num_ranks) {
  // What is wrong with the options is found here, before any rank starts.
  options.targets.check();
  static_cast<void>(make_bench_plan(options, num_ranks, GroupKind::kProcesses));
  LaunchOptions launch = relaunch_options(num_ranks);
  launch.peer_lost_exit_code = kExitPeerLost;
  launch.ranks_explain_exits = true;
  return launch_ranks(launch);
}

/// Without a launcher.
int chosen_ranks(const BenchOptions& options) {
  if (options.num_ranks > 0) return options.num_ranks;
  const std::size_t num_listed = std::min(options.num_tokens.size(), static_cast<std::size_t>(kMaxRanksOfHost));
  return num_listed > 1 ? static_cast<int>(num_listed) : kDefaultRanks;
}

}  // namespace

int run_ranks(const BenchOptions& options, const RankWork& work) {
  const bool launched = is_launched();
  const bool processes = options.group.empty() ? launched : options.group == to_string(GroupKind::kProcesses);
  const int num_ranks = chosen_ranks(options);
  if (!processes) return run_threads(options, num_ranks, work);
  if (!launched) return start_processes(options, num_ranks);
  return run_rank(options, work);
}

RanksToStart ranks_to_start(const BenchOptions& options) {
  const bool processes = options.group == to_string(GroupKind::kProcesses);
  return {.num_ranks = chosen_ranks(options), .group = processes ? GroupKind::kProcesses : GroupKind::kThreads};
}

BenchResult run_planned(Group& group, const BenchPlan& plan, Progress& progress) {
  const auto rank = static_cast<std::size_t>(group.rank());
  std::string task;
  const auto show = [&](const BenchStep& step) {
    if (rank != 0) return;
    if (step.task != task) {
      task = step.task;
      progress.begin(task);
    }
    progress.update(step.done, step.total);
  };
  return run_on_device(group, plan.spec, plan.tables[rank], show);
}

}  // namespace epistle::cli
