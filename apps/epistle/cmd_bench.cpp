// epistle bench: dispatch and combine among ranks, verified and timed.
#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "epistle/error.hpp"
#include "epistle/group.hpp"

#include "bench_options.hpp"
#include "bench_page.hpp"
#include "bench_plan.hpp"
#include "bench_ranks.hpp"
#include "bench_report.hpp"
#include "commands.hpp"
#include "dispatch/call/build_parts.hpp"
#include "exit_codes.hpp"
#include "group/limits.hpp"
#include "launch/launcher.hpp"
#include "measure/cuda/cuda_bench.hpp"
#include "measure/dispatch_bench.hpp"
#include "output.hpp"
#include "report/progress.hpp"

namespace epistle::cli {
namespace {

constexpr int kDefaultRanks = 2;

constexpr const char* kBenchFooter =
    "Every run compares every output bit with the reference, before and after the timed iterations, and fails (exit\n"
    "code 1) on a difference.\n"
    "\n"
    "With --group processes the command starts itself once per rank. Under 'epistle run', torchrun, mpirun or srun it\n"
    "takes the ranks that these started.\n"
    "\n"
    "Of a trace, each rank takes the tokens that follow those of the ranks before it; where the trace ends, it starts\n"
    "again. With --tokens-spread S, a rank that --tokens gives T tokens gets one of the numbers from T x (1 - S),\n"
    "rounded up, to T, all equally likely, by the seed and the rank.\n"
    "\n"
    "With --device cuda, ranks that are threads are spread over the visible GPUs in blocks, several on one GPU where\n"
    "there are fewer GPUs; ranks that are processes take one GPU each. Times are those of the ranks' streams.\n"
    "\n"
    "Examples:\n"
    "  epistle bench --ranks 8 --group processes --model qwen3-30b-a3b\n"
    "  epistle bench --dispatcher direct --layout expert_major --alignment 128 --dtype fp8 --model deepseek-v3\n"
    "  epistle bench --routing trace:routing.jsonl.gz --layer 3 --hidden 2048 --json result.json\n"
    "  epistle bench --routing zipf:1.0 --drop-capacity 1.25 --ranks 4\n"
    "  epistle bench --tokens 512,0,17\n"
    "  epistle bench --dispatcher low_latency,direct --tokens 8 --chain 20 --iters 1000\n"
    "  epistle bench --device cuda --group processes --sms 16 --model deepseek-v3 --sizing capacity \\\n"
    "                --capacity-rows 8192";

BenchResult run_on_device(Group& group, const BenchSpec& spec, const RoutingTable& table,
                          const BenchProgress& progress) {
  if (spec.device == Device::kHost) return run_dispatch_bench(group, spec, table, progress);
#if EPISTLE_HAS_CUDA
  return run_cuda_bench(group, spec, table, progress);
#else
  throw Error(ErrorCode::kUnsupported, "--device cuda: " + std::string(kLackOfCuda));
#endif
}

/// One rank's part. Rank 0 speaks for all, and shows how far they are.
int bench_rank(Group& group, const BenchPlan& plan, const BenchOptions& options, Progress& progress) {
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
  const BenchResult result = run_on_device(group, plan.spec, plan.tables[rank], show);
  const bool failed = plan.spec.expectation != nullptr && !result.verified;
  if (rank == 0) {
    progress.finish();
    const ResultTargets& targets = options.targets;
    // The files first: they are there even where nobody takes the table.
    const Json record = bench_json(plan, result);
    if (!targets.json.empty()) write_output(targets.json, json_text(record));
    if (!targets.html.empty()) write_output(targets.html, render_bench_page(record));
    if (failed && !targets.leave_stdout()) print_error(fmt::format("verification failed: {}", result.mismatch));
    if (targets.leave_stdout()) print(render_bench_table(plan, result));
  }
  return failed ? kExitFailed : kExitOk;
}

int run_threads(const BenchOptions& options, int num_ranks) {
  options.targets.check();
  Progress progress("preparing", options.quiet);
  BenchPlan plan = make_bench_plan(options, num_ranks, GroupKind::kThreads);
  require_device(plan);
  add_expectation(options, plan);
  int exit_code = kExitOk;
  run_thread_ranks(num_ranks, [&](Group& group) {
    const int code = bench_rank(group, plan, options, progress);
    if (group.rank() == 0) exit_code = code;
  });
  return exit_code;
}

/// This process is one of the ranks that a launcher started.
int run_rank(const BenchOptions& options) {
  const LaunchInfo info = read_launch_info();
  Progress progress("preparing", options.quiet || info.rank != 0);
  return run_launched_rank(
      info, options, [&](Group& group, const BenchPlan& plan) { return bench_rank(group, plan, options, progress); });
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
  const std::size_t num_listed = std::min(options.num_tokens.size(), static_cast<std::size_t>(kMaxRanks));
  return num_listed > 1 ? static_cast<int>(num_listed) : kDefaultRanks;
}

int run_bench(const BenchOptions& options) {
  const bool launched = is_launched();
  const bool processes = options.group.empty() ? launched : options.group == to_string(GroupKind::kProcesses);
  const int num_ranks = chosen_ranks(options);
  if (!processes) return run_threads(options, num_ranks);
  if (!launched) return start_processes(options, num_ranks);
  return run_rank(options);
}

void list_dispatchers(Device device) {
  for (const DispatcherInfo* info : dispatchers_of(device)) {
    print(fmt::format("{:<10}  {}\n", info->name(), info->summary()));
  }
}

}  // namespace

void add_bench_command(CLI::App& app, int& exit_code) {
  CLI::App* const command = app.add_subcommand("bench", "Dispatch and combine among ranks, verified and timed");
  const auto options = std::make_shared<BenchOptions>();
  const auto list = std::make_shared<bool>(false);
  add_bench_options(*command, *options);
  command->add_flag("--list", *list, "List the dispatchers of the device and exit");
  command->footer(kBenchFooter);
  command->callback([options, list, &exit_code] {
    if (*list) {
      list_dispatchers(device_of(*options));
      return;
    }
    exit_code = run_bench(*options);
  });
}

}  // namespace epistle::cli
