// epistle bench: dispatch and combine among ranks, verified and timed.
#include <memory>
#include <string>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "epistle/error.hpp"
#include "epistle/group.hpp"

#include "bench_options.hpp"
#include "bench_report.hpp"
#include "commands.hpp"
#include "exit_codes.hpp"
#include "group/launcher.hpp"
#include "output.hpp"
#include "report/progress.hpp"

namespace epistle::cli {
namespace {

constexpr int kDefaultRanks = 2;

constexpr const char* kFooter =
    "Every run compares every output bit with the reference, and fails (exit code 1) on the first difference.\n"
    "\n"
    "With --group processes the command starts itself once per rank. Under 'epistle run', torchrun, mpirun or srun it\n"
    "takes the ranks that these started.\n"
    "\n"
    "Examples:\n"
    "  epistle bench --ranks 8 --group processes --model qwen3-30b-a3b\n"
    "  epistle bench --dispatcher direct --layout expert_major --alignment 128 --dtype fp8 --model deepseek-v3\n"
    "  epistle bench --routing trace:routing.jsonl.gz --layer 3 --hidden 2048 --json result.json\n"
    "  epistle bench --routing zipf:1.0 --drop-capacity 1.25 --ranks 4";

/// One rank's part. Rank 0 speaks for all.
int bench_rank(Group& group, const BenchOptions& options) {
  const BenchPlan plan = make_bench_plan(options, group.size());
  Progress progress("measuring", options.quiet || group.rank() != 0);
  const BenchResult result = run_dispatch_bench(
      group, plan.spec, plan.tables, [&](std::int64_t done, std::int64_t total) { progress.update(done, total); });
  progress.finish();
  const bool passed = !plan.spec.verify || result.verified;
  if (group.rank() == 0) {
    const bool json_on_stdout = options.json_target == kStdout;
    if (!json_on_stdout) print(render_bench_table(plan, group.kind(), result));
    if (!options.json_target.empty()) write_output(options.json_target, render_bench_json(plan, group.kind(), result));
  }
  return passed ? kExitOk : kExitFailed;
}

int run_threads(const BenchOptions& options, int num_ranks) {
  int exit_code = kExitOk;
  run_thread_ranks(num_ranks, [&](Group& group) {
    const int code = bench_rank(group, options);
    if (group.rank() == 0) exit_code = code;
  });
  return exit_code;
}

int run_processes(const BenchOptions& options) {
  if (is_launched()) {
    const LaunchInfo info = read_launch_info();
    if (options.num_ranks > 0 && options.num_ranks != info.num_ranks) {
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("--ranks is {}, but {} started {} ranks; leave --ranks out or make them equal",
                              options.num_ranks, info.launcher, info.num_ranks));
    }
    Group group = join_process_group(info);
    return bench_rank(group, options);
  }
  const int num_ranks = options.num_ranks > 0 ? options.num_ranks : kDefaultRanks;
  // Wrong options are reported once, by this process, before any rank starts.
  (void)make_bench_plan(options, 1);
  LaunchOptions launch = relaunch_options(num_ranks);
  launch.peer_lost_exit_code = kExitPeerLost;
  return launch_ranks(launch);
}

void list_dispatchers() {
  for (const DispatcherInfo& info : dispatcher_registry()) print(fmt::format("{:<10}  {}\n", info.name, info.summary));
}

}  // namespace

void add_bench_command(CLI::App& app, int& exit_code) {
  CLI::App* const command = app.add_subcommand("bench", "Dispatch and combine among ranks, verified and timed");
  const auto options = std::make_shared<BenchOptions>();
  const auto list = std::make_shared<bool>(false);
  add_bench_options(*command, *options);
  command->add_flag("--list", *list, "List the dispatchers and exit");
  command->footer(kFooter);
  command->callback([options, list, &exit_code] {
    if (*list) {
      list_dispatchers();
      return;
    }
    const int num_ranks = options->num_ranks > 0 ? options->num_ranks : kDefaultRanks;
    exit_code = options->group == "threads" ? run_threads(*options, num_ranks) : run_processes(*options);
  });
}

}  // namespace epistle::cli
