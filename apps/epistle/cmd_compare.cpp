// epistle compare: dispatchers measured in turns on one stack, or stored records of that beside each other.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "bench_flow.hpp"
#include "bench_options.hpp"
#include "commands.hpp"
#include "compare_record.hpp"
#include "compare_report.hpp"
#include "core/reject.hpp"
#include "exit_codes.hpp"
#include "output.hpp"

namespace epistle::cli {
namespace {

constexpr std::int32_t kCompareRounds = 50;
constexpr std::int32_t kComparePairs = 20;

constexpr const char* kCompareFooter =
    "All dispatchers live at once and move the same rows by the same routing. In every round each of them in turn "
    "does\n"
    "its phases one by one and a chain of pairs; every round begins with another one. One that cannot serve the "
    "shape,\n"
    "or cannot be made here, gets a row 'unavailable: reason'.\n"
    "\n"
    "With FILEs, records that --json wrote are put beside each other: every dispatcher against itself in the first\n"
    "file. Records of different stacks are refused. Options of a run then make no sense.\n"
    "\n"
    "Examples:\n"
    "  epistle compare --ranks 2 --model qwen3-30b-a3b --tokens 128 --json before.json\n"
    "  epistle compare --dispatcher direct,alltoall --baseline alltoall --html report.html\n"
    "  epistle compare --device cuda --tokens 128 --sizing capacity --capacity-rows 1024 --graph\n"
    "  epistle compare before.json after.json";

struct CompareOptions {
  BenchOptions bench;
  StoredOptions stored;
};

void write_results(const ResultTargets& targets, const Json& document) {
  if (!targets.json.empty()) write_output(targets.json, json_text(document));
  if (!targets.html.empty()) write_output(targets.html, render_compare_page(document));
  if (targets.leave_stdout()) print(render_compare_table(document));
}

int compare_rank(Group& group, const BenchPlan& plan, const CompareOptions& options, Progress& progress) {
  const BenchResult result = run_planned(group, plan, progress);
  const bool failed = plan.spec.expectation != nullptr && !result.verified;
  if (group.rank() != 0) return failed ? kExitFailed : kExitOk;
  progress.finish();
  write_results(options.bench.targets, compare_json(plan, result, options.stored.baseline));
  if (!failed) return kExitOk;
  print_error(fmt::format("verification failed: {}", result.mismatch));
  return kExitFailed;
}

/// An option of a run that was given, or null.
const CLI::Option* find_run_option(const CLI::App& command) {
  for (const CLI::Option* const option : command.get_options()) {
    const std::string name = option->get_name();
    if (option->count() == 0 || !option->nonpositional()) continue;
    if (name == "--json" || name == "--html" || name == "--baseline" || name == "--allow-different-stacks") continue;
    return option;
  }
  return nullptr;
}

int compare_stored(const CLI::App& command, const CompareOptions& options) {
  if (const CLI::Option* const option = find_run_option(command)) {
    reject(fmt::format("{} belongs to a run; with FILEs there is none", option->get_name()));
  }
  if (options.stored.files.size() < 2) {
    reject(fmt::format("{} alone is nothing to compare; give two records or more", options.stored.files.front()));
  }
  options.bench.targets.check();
  write_results(options.bench.targets, combine_records(options.stored));
  return kExitOk;
}

int compare(const CLI::App& command, const CompareOptions& options) {
  if (!options.stored.files.empty()) return compare_stored(command, options);
  if (options.stored.allow_different_stacks) reject("--allow-different-stacks belongs to FILEs; a run has one stack");
  const auto& names = options.bench.dispatchers;
  if (!options.stored.baseline.empty() && !names.empty() &&
      std::find(names.begin(), names.end(), options.stored.baseline) == names.end() &&
      (options.stored.baseline != "profile" || options.bench.profile.empty())) {
    reject(fmt::format("--baseline {} is none of --dispatcher {}", options.stored.baseline, fmt::join(names, ",")));
  }
  return run_ranks(options.bench, [&](Group& group, const BenchPlan& plan, const BenchOptions&, Progress& progress) {
    return compare_rank(group, plan, options, progress);
  });
}

}  // namespace

void add_compare_command(CLI::App& app, int& exit_code) {
  CLI::App* const command =
      app.add_subcommand("compare", "Dispatchers in turns on one stack, or stored records of that");
  const auto options = std::make_shared<CompareOptions>();
  options->bench.compares = true;
  options->bench.num_iterations = kCompareRounds;
  options->bench.num_chained_pairs = kComparePairs;
  command->add_option("FILE", options->stored.files, "Records to put beside each other, instead of a run")
      ->type_name("");
  add_run_options(*command, options->bench, "all of the device but reference");
  add_chain_option(
      *command, options->bench,
      fmt::format("Pairs of dispatch (with expert ids) and combine in a chain, with no host wait in between "
                  "(default: {})",
                  kComparePairs));
  add_profile_option(*command, options->bench, "Let the settings of a profile take part, as 'profile'");
  command->add_flag("--graph", options->bench.chain_in_graph,
                    "CUDA device: a chain is one CUDA graph, instead of launched by the host; needs --sizing capacity");
  command
      ->add_option("--baseline", options->stored.baseline,
                   "What the others are compared with (default: the first that is measured)")
      ->type_name("NAME");
  command->add_flag("--allow-different-stacks", options->stored.allow_different_stacks,
                    "Show records of different stacks side by side, without a word on significance");
  command->footer(kCompareFooter);
  command->callback([command, options, &exit_code] { exit_code = compare(*command, *options); });
}

}  // namespace epistle::cli
