// epistle select: which dispatcher, and why; and what a configuration of an engine really runs.
#include <algorithm>
#include <iostream>
#include <memory>
#include <string>

#include <CLI/CLI.hpp>

#include "epistle/error.hpp"

#include "commands.hpp"
#include "core/whole_file.hpp"
#include "exit_codes.hpp"
#include "optional_json.hpp"
#include "output.hpp"
#include "select/select.hpp"
#include "select_options.hpp"
#include "select_report.hpp"

namespace epistle::cli {
namespace {

constexpr const char* kSelectFooter =
    "alltoall and allgather need nothing but the engine; every other backend is a candidate only where --assume or\n"
    "--doctor says that it is installed. Scores order the candidates and mean nothing else: measure the first two on "
    "one\n"
    "stack.\n"
    "\n"
    "Examples:\n"
    "  epistle select --hardware h100-hgx --ep 16 --model qwen3-30b-a3b --assume deepep,hybridep\n"
    "  epistle select --hardware gb200-nvl72 --ep 64 --model deepseek-v3 --precision fp8 --assume all --json -\n"
    "  epistle select --hardware cluster.json --ep 32 --hidden 4096 --experts 128 --top-k 8 --assume none\n"
    "  epistle select --check pretrain.sh --hardware h100-hgx\n"
    "  epistle select --check serve.yaml --json - --fail-on error";

void show(const std::string& target, const Json& json, const std::string& text) {
  if (!target.empty()) write_output(target, json_text(json));
  if (target != kStdout) print(text);
}

void select(const SelectOptions& options) {
  const SelectFacts facts = make_facts(make_select_query(options));
  const Selection selection = select_dispatcher(facts);
  show(options.json_target, selection_json(facts, selection), render_selection(facts, selection));
}

check::ConfigFile read_checked(const std::string& name) {
  if (name != kStdout) return check::read_config(name);
  constexpr const char* kName = "standard input";
  return check::parse_config(read_whole_stream(std::cin, kName), kName);
}

int check_file(const SelectOptions& options) {
  check::CheckOptions check_options = make_check_options(options);
  const check::ConfigFile file = read_checked(options.check);
  if (!check_options.cluster && !file.hardware.empty()) check_options.cluster = find_cluster(file.hardware);
  const check::CheckReport report = check::check_config(file, check_options);
  show(options.json_target, check_json(file, report), render_check(file, report));
  if (options.fail_on.empty()) return kExitOk;
  const check::Severity least = options.fail_on == "error" ? check::Severity::kError : check::Severity::kWarning;
  const bool failed = std::any_of(report.findings.begin(), report.findings.end(),
                                  [&](const check::Finding& finding) { return finding.severity >= least; });
  return failed ? kExitFailed : kExitOk;
}

}  // namespace

void add_select_command(CLI::App& app, int& exit_code) {
  CLI::App* const command = app.add_subcommand("select", "Choose a dispatcher, or check what a configuration runs");
  const auto options = std::make_shared<SelectOptions>();
  add_select_options(*command, *options);
  add_optional_json_option(*command, options->json_target);
  command->footer(kSelectFooter);
  command->callback([options, &exit_code] {
    if (options->check.empty()) {
      select(*options);
    } else {
      exit_code = check_file(*options);
    }
  });
}

}  // namespace epistle::cli
