// epistle tune: the settings of a dispatcher for one machine and one shape, measured one knob at a time.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "bench_flow.hpp"
#include "bench_options.hpp"
#include "commands.hpp"
#include "core/reject.hpp"
#include "exit_codes.hpp"
#include "not_empty.hpp"
#include "number_options.hpp"
#include "output.hpp"
#include "tune_report.hpp"
#include "tune_run.hpp"

namespace epistle::cli {
namespace {

constexpr std::int32_t kTuneRounds = 20;
constexpr std::int32_t kTunePairs = 10;
constexpr std::int64_t kMaxConcurrency = 16;  // each has buffers of its own

constexpr const char* kTuneFooter =
    "First one rank alone and then all of them are verified with the default settings. Then one knob at a time is "
    "turned:\n"
    "dispatcher, workers or SMs, and others of the device. Every value takes turns with the settings chosen so far. A\n"
    "knob that costs workers, SMs or memory is left after two values in a row that are not faster. In the end default\n"
    "and tuned settings take turns, verified; what is not shown to be better is not taken.\n"
    "\n"
    "Transport alone is fastest with every SM or thread, which a model needs for its products: --gemm has some of "
    "these "
    "run\n"
    "beside the calls, and --concurrency N lets N requests be under way at once.\n"
    "\n"
    "The profile says which version, machine, group and shape it is for, and is refused elsewhere.\n"
    "\n"
    "Examples:\n"
    "  epistle tune --ranks 2 --tokens 128 --profile decode.json\n"
    "  epistle bench --ranks 2 --tokens 128 --profile decode.json\n"
    "  epistle compare --dispatcher direct --ranks 2 --tokens 128 --profile decode.json\n"
    "  epistle tune --ranks 2 --tokens 128 --gemm --concurrency 2 --policy balanced --profile decode.json\n"
    "  epistle tune --device cuda --group processes --policy balanced --profile train.json --html train.html";

struct TuneOptions {
  BenchOptions bench;
  std::string profile_target;
};

TunePolicy policy_of(const std::string& name) {
  for (const TunePolicy policy : {TunePolicy::kLatency, TunePolicy::kThroughput, TunePolicy::kBalanced}) {
    if (to_string(policy) == name) return policy;
  }
  reject(fmt::format("--policy is '{}'; it takes latency, throughput, balanced", shortened(name)));
}

void check_options(const TuneOptions& options) {
  const BenchOptions& bench = options.bench;
  static_cast<void>(policy_of(options.bench.policy));
  if (bench.num_workers > 0) reject("--workers is what tune finds; leave it out");
  if (bench.num_sms > 0) reject("--sms is what tune finds; leave it out");
  if (!bench.mover.empty()) reject("--mover is what tune finds; leave it out");
  if (bench.concurrency > bench.num_chained_pairs) {
    reject(fmt::format("--concurrency {} is more than a chain has: --chain {}; give a longer chain", bench.concurrency,
                       bench.num_chained_pairs));
  }
  const std::string& target = options.profile_target;
  if (target.empty()) return;
  if (target == kStdout) reject("--profile needs a file; --json - writes the same to standard output");
  if (target == bench.targets.json || target == bench.targets.html) {
    reject(fmt::format("two results go to {}; give each its own", target));
  }
  check_output(target);
}

int tune_rank(Group& group, const BenchPlan& plan, const TuneOptions& options, Progress& progress) {
  const TunePolicy policy = policy_of(options.bench.policy);
  const TuneResult result = run_tune(group, plan, options.bench, policy, progress);
  if (group.rank() != 0) return kExitOk;
  progress.finish();
  const Json document = tune_json(plan, result, policy);
  const ResultTargets& targets = options.bench.targets;
  if (!options.profile_target.empty()) write_output(options.profile_target, json_text(document));
  if (!targets.json.empty()) write_output(targets.json, json_text(document));
  if (!targets.html.empty()) write_output(targets.html, render_tune_page(document));
  if (targets.leave_stdout()) print(render_tune_table(document));
  return kExitOk;
}

}  // namespace

void add_tune_command(CLI::App& app, int& exit_code) {
  CLI::App* const command = app.add_subcommand("tune", "The best settings for a machine and a shape, as a profile");
  const auto options = std::make_shared<TuneOptions>();
  options->bench.compares = true;
  options->bench.num_iterations = kTuneRounds;
  options->bench.num_chained_pairs = kTunePairs;
  add_run_options(*command, options->bench,
                  "all of the device but reference; hybrid over several domains only; over hosts hybrid,alltoall; the "
                  "first is the default");
  add_chain_option(*command, options->bench,
                   fmt::format("Pairs of dispatch (with expert ids) and combine in a chain (default: {})", kTunePairs));
  command
      ->add_option("--policy", options->bench.policy,
                   "throughput (default: the shortest period), latency (the shortest tail, then the fewest workers or "
                   "SMs within 2%) or balanced (the fewest within 5% of the shortest period)")
      ->type_name("POLICY");
  command->add_flag("--gemm", options->bench.gemm,
                    "Beside every chain runs work that takes as long by itself (host: a thread of each rank that "
                    "multiplies matrices; cuda: kernels on all SMs): what is measured is when both have ended");
  add_number(*command, "--concurrency", options->bench.concurrency, {1, kMaxConcurrency},
             "Requests at once: so many dispatches, each with buffers of its own, and then their combines (default: 1)")
      ->type_name("N");
  command->add_option("--profile", options->profile_target, "Write the profile to FILE")
      ->check(not_empty())
      ->type_name("FILE");
  command->footer(kTuneFooter);
  command->callback([options, &exit_code] {
    check_options(*options);
    exit_code =
        run_ranks(options->bench, [&](Group& group, const BenchPlan& plan, const BenchOptions&, Progress& progress) {
          return tune_rank(group, plan, *options, progress);
        });
  });
}

}  // namespace epistle::cli
