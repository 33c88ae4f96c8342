// epistle compare: dispatchers measured in turns on one stack, or stored records of that beside each other.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "bench_flow.hpp"
#include "bench_options.hpp"
#include "commands.hpp"
#include "compare_packages.hpp"
#include "compare_record.hpp"
#include "compare_report.hpp"
#include "core/json_field.hpp"
#include "core/reject.hpp"
#include "exit_codes.hpp"
#include "number_options.hpp"
#include "output.hpp"
#include "temp_folder.hpp"

namespace epistle::cli {
namespace {

constexpr std::int32_t kCompareRounds = 50;
constexpr std::int32_t kComparePairs = 20;
constexpr std::int64_t kMaxBlockSeconds = 86'400;

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
    "Packages of others (deepep, ncclep, ...) are named in --dispatcher as well. The interpreter that --python names "
    "runs\n"
    "them as processes, with the same routing, in one block of rounds before the other dispatchers and one after "
    "them.\n"
    "\n"
    "Examples:\n"
    "  epistle compare --ranks 2 --model qwen3-30b-a3b --tokens 128 --json before.json\n"
    "  epistle compare --dispatcher direct,alltoall --baseline alltoall --html report.html\n"
    "  epistle compare --device cuda --tokens 128 --sizing capacity --capacity-rows 1024 --graph\n"
    "  epistle compare --device cuda --group processes --dispatcher direct,ncclep --python python3 --tokens 128\n"
    "  epistle compare before.json after.json";

// Names the file that ranks, which this command starts as processes, leave the document of their run in. The packages
// of others are added to it before it is shown.
constexpr const char* kDocumentVariable = "EPISTLE_COMPARE_DOCUMENT";

struct CompareOptions {
  BenchOptions bench;
  PackageOptions packages;
  StoredOptions stored;
};

/// The baseline of the dispatchers of Epistle among themselves.
std::string own_baseline(const CompareOptions& options) {
  return is_package(options.stored.baseline) ? std::string() : options.stored.baseline;
}

void write_results(const ResultTargets& targets, const Json& document) {
  if (!targets.json.empty()) write_output(targets.json, json_text(document));
  if (!targets.html.empty()) write_output(targets.html, render_compare_page(document));
  if (targets.leave_stdout()) print(render_compare_table(document));
}

using TakeDocument = std::function<void(const Json& document)>;

int compare_rank(Group& group, const BenchPlan& plan, const CompareOptions& options, Progress& progress,
                 const TakeDocument& take) {
  const BenchResult result = run_planned(group, plan, progress);
  const bool failed = plan.spec.expectation != nullptr && !result.verified;
  if (group.rank() != 0) return failed ? kExitFailed : kExitOk;
  progress.finish();
  take(compare_json(plan, result, own_baseline(options)));
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

void check_baseline(const CompareOptions& options) {
  const std::string& baseline = options.stored.baseline;
  std::vector<std::string> names = options.bench.dispatchers;
  if (is_package(baseline)) {
    names = options.packages.names;
  } else if (names.empty()) {
    return;  // all dispatchers of the device
  }
  if (baseline.empty() || std::find(names.begin(), names.end(), baseline) != names.end()) return;
  if (baseline == "profile" && !options.bench.profile.empty()) return;
  reject(fmt::format("--baseline {} is none of --dispatcher {}", baseline, fmt::join(names, ",")));
}

int compare_ranks(const CompareOptions& options, const TakeDocument& take) {
  return run_ranks(options.bench, [&](Group& group, const BenchPlan& plan, const BenchOptions&, Progress& progress) {
    return compare_rank(group, plan, options, progress, take);
  });
}

/// Packages first, then the dispatchers of Epistle, then packages once more.
int compare_with_packages(const CompareOptions& options) {
  if (is_launched()) {
    reject(
        "packages of others are run by the process that starts the ranks; leave the launcher out, and give --group "
        "processes");
  }
  options.bench.targets.check();
  const RanksToStart ranks = ranks_to_start(options.bench);
  const BenchPlan plan = make_bench_plan(options.bench, ranks.num_ranks, ranks.group);
  PackageBlocks blocks(options.packages, plan);
  {
    Progress progress("packages", options.bench.quiet);
    blocks.run(progress);
    progress.finish();
  }
  Json document;
  const TempFolder folder;
  const std::string file = folder.file("document.json");
  ::setenv(kDocumentVariable, file.c_str(), 1);
  const int code = compare_ranks(options, [&](const Json& own) { document = own; });
  ::unsetenv(kDocumentVariable);
  if (document.is_null() && std::filesystem::exists(file)) document = read_json_file(file);
  if (document.is_null()) return code == kExitOk ? kExitSystem : code;  // the ranks have said why
  {
    Progress progress("packages", options.bench.quiet);
    blocks.run(progress);
    progress.finish();
  }
  blocks.add_to(document);
  document["command"] = command_line();
  compare_again(document, options.stored.baseline);
  write_results(options.bench.targets, document);
  return code;
}

int compare(const CLI::App& command, const CompareOptions& options) {
  if (!options.stored.files.empty()) return compare_stored(command, options);
  if (options.stored.allow_different_stacks) reject("--allow-different-stacks belongs to FILEs; a run has one stack");
  check_baseline(options);
  // One of the ranks of a run that has packages.
  if (const char* const file = std::getenv(kDocumentVariable); file != nullptr && is_launched()) {
    return compare_ranks(options, [&](const Json& own) { write_output(file, json_text(own)); });
  }
  if (!options.packages.names.empty()) return compare_with_packages(options);
  if (!options.packages.python.empty()) reject("--python is for packages of others; name one with --dispatcher");
  return compare_ranks(options, [&](const Json& own) { write_results(options.bench.targets, own); });
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
  add_run_options(*command, options->bench,
                  "all of the device but reference; hybrid over several domains only; over hosts hybrid,alltoall");
  add_chain_option(
      *command, options->bench,
      fmt::format("Pairs of dispatch (with expert ids) and combine in a chain, with no host wait in between "
                  "(default: {})",
                  kComparePairs));
  add_profile_option(*command, options->bench, "Let the settings of a profile take part, as 'profile'");
  command
      ->add_option("--python", options->packages.python,
                   "Python interpreter whose packages are measured beside ours: deepep, deepep-low-latency, deepep-v2, "
                   "hybridep, ncclep, ncclep-high-throughput, flashinfer, mori, nixl, uccl in --dispatcher")
      ->type_name("PATH");
  add_number(*command, "--time-limit", options->packages.limit_s, {1, kMaxBlockSeconds},
             "Seconds for each of the two blocks of a package (default: 300)")
      ->type_name("S");
  command->add_flag("--graph", options->bench.chain_in_graph,
                    "CUDA device: a chain is one CUDA graph, instead of launched by the host; needs --sizing capacity");
  command
      ->add_option("--baseline", options->stored.baseline,
                   "What the others are compared with (default: the first that is measured)")
      ->type_name("NAME");
  command->add_flag("--allow-different-stacks", options->stored.allow_different_stacks,
                    "Show records of different stacks side by side, without a word on significance");
  command->footer(kCompareFooter);
  command->callback([command, options, &exit_code] {
    take_package_names(options->bench, options->packages);
    exit_code = compare(*command, *options);
  });
}

}  // namespace epistle::cli
