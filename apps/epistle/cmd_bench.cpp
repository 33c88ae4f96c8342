// epistle bench: dispatch and combine among ranks, verified and timed.
#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "bench_flow.hpp"
#include "bench_options.hpp"
#include "bench_page.hpp"
#include "bench_plan.hpp"
#include "bench_report.hpp"
#include "commands.hpp"
#include "exit_codes.hpp"
#include "output.hpp"
#include "report/progress.hpp"

namespace epistle::cli {
namespace {

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

/// Masked ranks end at once, and the process of the lowest rank of a host carries what the others there say.
void check_masked_leaders(const Group& group, const std::vector<int>& masked) {
  const auto is_masked = [&](int rank) { return std::binary_search(masked.begin(), masked.end(), rank); };
  for (int rank = 0; rank < group.size(); ++rank) {
    int leader = 0;
    while (group.host_of(leader) != group.host_of(rank)) ++leader;
    if (group.num_hosts() == 1 || is_masked(rank) || !is_masked(leader)) continue;
    throw Error(
        ErrorCode::kInvalidArgument,
        fmt::format("--mask names rank {}, which carries what rank {} of its host says to other hosts; leave it "
                    "out, or mask all ranks of that host",
                    leader, rank));
  }
}

/// One that is told that it is left out while it still joins would take that for a failure.
void wait_until_gone(const Group& group, const std::vector<int>& masked) {
  constexpr std::chrono::milliseconds kPause{1};
  const auto give_up = std::chrono::steady_clock::now() + group.timeout();
  for (std::vector<int> gone; std::chrono::steady_clock::now() < give_up; std::this_thread::sleep_for(kPause)) {
    gone = group.suspects();
    if (std::includes(gone.begin(), gone.end(), masked.begin(), masked.end())) return;
  }
}

/// One rank's part. Rank 0 speaks for all.
int bench_rank(Group& group, const BenchPlan& plan, const BenchOptions& options, Progress& progress) {
  if (!plan.masked.empty()) {
    check_masked_leaders(group, plan.masked);
    if (std::find(plan.masked.begin(), plan.masked.end(), group.rank()) != plan.masked.end()) return kExitOk;
    wait_until_gone(group, plan.masked);
    group.set_mask(plan.masked);
  }
  const BenchResult result = run_planned(group, plan, progress);
  const bool failed = plan.spec.expectation != nullptr && !result.verified;
  if (group.rank() == 0) {
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
    exit_code = run_ranks(*options, bench_rank);
  });
}

}  // namespace epistle::cli
