#include "select/check/check.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "select/check/flag_names.hpp"

namespace epistle::check {
namespace {

const Setting* first_line_of(const RunConfig& run, std::string_view name) {
  const Setting* const setting = run.find(name);
  return setting != nullptr ? setting : run.find_environment(name);
}

/// What two runs of one file must have in common to be compared, and the rule that says so.
struct ComparedOption {
  std::string_view name;
  std::string_view what;
  std::string_view rule;
};

constexpr std::array kCompared = {
    ComparedOption{"moe-router-force-load-balancing", "the routing mode", "compare-routing-mode"},
    ComparedOption{"pipeline-model-parallel-size", "the PP layout", "compare-pipeline-layout"},
    ComparedOption{"num-layers-per-virtual-pipeline-stage", "the VPP layout", "compare-pipeline-layout"},
    ComparedOption{"cuda-graph-modules", "the graph scopes", "compare-graph-scopes"},
    ComparedOption{"cuda-graph-scope", "the graph scopes", "compare-graph-scopes"},
    ComparedOption{"cuda-graph-impl", "the graph implementation", "compare-graph-scopes"},
};

std::string value_text(const RunConfig& run, std::string_view name) {
  const Setting* const setting = run.find(name);
  if (setting == nullptr) return "";
  std::string text = run.has(name) ? "set" : "";
  for (const std::string& value : setting->values) text += " " + value;
  return text;
}

/// Two runs of one file that differ in their dispatcher are a comparison.
void compare_runs(const ConfigFile& file, const std::vector<RunFacts>& facts, Findings& findings) {
  const RunFacts* base = nullptr;
  for (const RunFacts& other : facts) {
    // Functions of one file are recipes for different machines.
    if (other.run.dialect == Dialect::kPython) continue;
    if (other.run.engine != Engine::kMegatron || other.would_run == "none" || other.would_run == "unknown") continue;
    if (base == nullptr) {
      base = &other;
      continue;
    }
    if (base->would_run == other.would_run) continue;
    for (const ComparedOption& option : kCompared) {
      if (value_text(base->run, option.name) == value_text(other.run, option.name)) continue;
      const Setting* setting = first_line_of(other.run, option.name);
      if (setting == nullptr) setting = first_line_of(base->run, option.name);
      findings.push_back(
          {.rule = std::string(option.rule),
           .severity = Severity::kWarning,
           .line = setting->line,
           .flag = setting->flag,
           .message = fmt::format("the runs at lines {} ({}) and {} ({}) differ in {}: their times say nothing of the "
                                  "dispatchers",
                                  base->run.line, base->would_run, other.run.line, other.would_run, option.what),
           .fix = fmt::format("give all runs of {} the same", file.name)});
    }
  }
}

void check_build(const ConfigFile& file, const std::vector<RunFacts>& facts, Findings& findings) {
  if (file.plain_hybridep_build_line == 0) return;
  const bool spans = std::any_of(facts.begin(), facts.end(), [](const RunFacts& run) {
    return run.would_run == "hybridep" && run.domain_ranks && run.ep > *run.domain_ranks;
  });
  if (!spans) return;
  findings.push_back(
      {.rule = "hybridep-multinode-build",
       .severity = Severity::kError,
       .line = file.plain_hybridep_build_line,
       .flag = "HYBRID_EP_MULTINODE",
       .message = "HybridEP is built here without HYBRID_EP_MULTINODE=1, and the EP group spans several domains",
       .fix = "build it with HYBRID_EP_MULTINODE=1"});
}

}  // namespace

std::string_view to_string(Severity severity) noexcept {
  constexpr std::array<std::string_view, 3> kNames = {"info", "warning", "error"};
  return kNames[static_cast<std::size_t>(severity)];
}

void add_finding(Findings& findings, const CheckRule& rule, const Setting& setting, std::string message,
                 std::string fix) {
  findings.push_back({.rule = std::string(rule.id),
                      .severity = rule.severity,
                      .line = setting.line,
                      .flag = setting.flag,
                      .message = std::move(message),
                      .fix = std::move(fix)});
}

std::vector<CheckRule> all_checks() {
  std::vector<CheckRule> rules;
  for (const auto part :
       {common_checks(), megatron_checks(), megatron_layout_checks(), megatron_graph_checks(), megatron_router_checks(),
        backend_checks(), low_latency_checks(), vllm_checks(), sglang_checks()}) {
    rules.insert(rules.end(), part.begin(), part.end());
  }
  return rules;
}

CheckReport check_config(const ConfigFile& file, const CheckOptions& options) {
  CheckReport report;
  std::vector<RunFacts> facts;
  facts.reserve(file.runs.size());
  for (const RunConfig& run : file.runs) {
    facts.push_back(make_run_facts(run, options));
    for (const CheckRule& rule : all_checks()) {
      if (rule.engine != Engine::kUnknown && rule.engine != run.engine) continue;
      rule.find(facts.back(), rule, report.findings);
    }
    report.runs.push_back({.engine = run.engine, .line = run.line, .would_run = facts.back().would_run});
  }
  compare_runs(file, facts, report.findings);
  check_build(file, facts, report.findings);
  // A script may start more than the run that matters: the first one that dispatches speaks for the file.
  const auto dispatches = [](const RunReport& run) { return run.would_run != "none" && run.would_run != "unknown"; };
  auto main_run = std::find_if(report.runs.begin(), report.runs.end(), dispatches);
  if (main_run == report.runs.end()) {
    main_run = std::find_if(report.runs.begin(), report.runs.end(),
                            [](const RunReport& run) { return run.would_run != "none"; });
  }
  if (!report.runs.empty()) {
    const RunReport& run = main_run != report.runs.end() ? *main_run : report.runs.front();
    report.engine = run.engine;
    report.would_run = run.would_run;
  }
  std::stable_sort(report.findings.begin(), report.findings.end(),
                   [](const Finding& left, const Finding& right) { return left.line < right.line; });
  // Several runs of a script share its variables: what is wrong in one is said once.
  const auto same = [](const Finding& left, const Finding& right) {
    return std::tie(left.rule, left.line, left.flag, left.message) ==
           std::tie(right.rule, right.line, right.flag, right.message);
  };
  report.findings.erase(std::unique(report.findings.begin(), report.findings.end(), same), report.findings.end());
  return report;
}

}  // namespace epistle::check
