// epistle balance: where experts should be, and which replica serves which tokens, scored on a recorded routing or on
// loads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "epistle/error.hpp"

#include "balance/layer_forecast.hpp"
#include "balance/load_file.hpp"
#include "balance/replay.hpp"
#include "balance_metrics.hpp"
#include "balance_options.hpp"
#include "balance_page.hpp"
#include "balance_report.hpp"
#include "commands.hpp"
#include "core/reject.hpp"
#include "output.hpp"
#include "report/progress.hpp"
#include "routing/trace_layers.hpp"
#include "routing/trace_reader.hpp"

namespace epistle::cli {
namespace {

constexpr std::string_view kTracePrefix = "trace:";
constexpr double kMostBatchTokens = 1e18;
constexpr std::int64_t kDefaultExpertBytes = 44040192;  // three matrices of 7168 x 2048 fp8: DeepSeek-V3

std::vector<std::int32_t> to_int32(const std::vector<std::int64_t>& values) { return {values.begin(), values.end()}; }

/// From what the command line says; what it leaves out comes from the load file, then from the number of experts.
balance::Cluster make_cluster(const BalanceOptions& options, const balance::LoadFile& file, std::int32_t num_experts) {
  const std::vector<std::int32_t> slots =
      !options.slots.empty()
          ? to_int32(options.slots)
          : file.slots.value_or(std::vector<std::int32_t>{
                file.current.empty() ? num_experts : static_cast<std::int32_t>(file.current.front().size())});
  const std::vector<std::int32_t> domains =
      !options.domains.empty() ? to_int32(options.domains) : file.domains.value_or(std::vector<std::int32_t>{1});
  std::int32_t num_ranks = options.num_ranks > 0 ? options.num_ranks : file.num_ranks.value_or(0);
  if (num_ranks == 0 && slots.size() > 1) num_ranks = static_cast<std::int32_t>(slots.size());
  if (num_ranks == 0) reject("the number of ranks is not known; give --ranks");
  if (slots.size() > 1 && static_cast<std::int32_t>(slots.size()) != num_ranks) {
    reject(fmt::format("slots of {} ranks, expected {}: one number for all together, or one for every rank",
                       slots.size(), num_ranks));
  }
  if (domains.size() > 1 && static_cast<std::int32_t>(domains.size()) != num_ranks) {
    reject(fmt::format("domains of {} ranks, expected {}: how many there are, or that of every rank", domains.size(),
                       num_ranks));
  }
  balance::Cluster cluster = balance::Cluster::even(num_ranks, slots.size() == 1 ? slots.front() : num_ranks,
                                                    domains.size() == 1 ? domains.front() : 1);
  if (slots.size() > 1) cluster.slots_of_rank = slots;
  if (domains.size() > 1) cluster.domain_of_rank = domains;
  cluster.check(num_experts);
  return cluster;
}

balance::PlanRequest make_request(const BalanceOptions& options, const balance::Cluster& cluster) {
  const auto limit = [](std::int64_t bytes) { return bytes < 0 ? balance::kUnlimited : bytes; };
  balance::PlanRequest request;
  request.cluster = cluster;
  request.num_candidates = options.num_candidates;
  request.num_groups = options.num_groups;
  request.objective =
      options.objective == "tokens" ? balance::Objective::kTokens : balance::Objective::kActivatedExperts;
  request.expert_bytes = options.expert_bytes;
  request.budget_bytes = limit(options.budget_bytes);
  request.max_bytes_into_rank = limit(options.max_bytes_into_rank);
  request.max_bytes_across_domains = limit(options.max_bytes_across);
  request.target = options.target;
  request.min_gain = options.min_gain;
  return request;
}

std::vector<balance::Policy> policies_of(const BalanceOptions& options) {
  std::vector<balance::Policy> policies;
  const auto add = [&](std::string_view name) {
    const balance::Policy policy = balance::policy_named(name);
    if (std::find(policies.begin(), policies.end(), policy) == policies.end()) policies.push_back(policy);
  };
  for (const std::string& name : options.policies) add(name);
  if (options.policies.empty()) {
    for (const std::string_view name : balance::kPolicyNames) add(name);
  }
  return policies;
}

/// EPLB cannot serve every cluster. Who asks for it is refused; who asks for nothing in particular gets the others, and
/// the report says so.
std::vector<balance::Policy> policies_for(const BalanceOptions& options, std::size_t num_experts,
                                          BalanceReport& report) {
  std::vector<balance::Policy> policies = policies_of(options);
  if (!options.policies.empty()) return policies;
  try {
    (void)balance::plan_eplb(std::vector<double>(num_experts, 1.0), report.cluster, options.num_groups);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kInvalidArgument) throw;
    report.no_eplb = std::string(error.message());
    policies.erase(std::find(policies.begin(), policies.end(), balance::Policy::kEplb));
  }
  return policies;
}

/// Results come layer by layer; the report has them policy by policy.
void sort_by_policy(std::vector<balance::ReplayResult>& results, const std::vector<balance::Policy>& policies) {
  const auto place = [&](const balance::ReplayResult& result) {
    return std::find(policies.begin(), policies.end(), result.policy) - policies.begin();
  };
  std::stable_sort(results.begin(), results.end(),
                   [&](const balance::ReplayResult& a, const balance::ReplayResult& b) { return place(a) < place(b); });
}

[[noreturn]] void reject_layer(const BalanceOptions& options, const std::string& path, const LayerList& present) {
  throw Error(ErrorCode::kNotFound,
              fmt::format("layer {} is not in '{}'; it holds these layers: {}", options.layer, path, present.text()));
}

std::vector<std::int64_t> count_tokens(const RoutingTable& table) {
  std::vector<std::int64_t> tokens(static_cast<std::size_t>(table.num_experts), 0);
  for (const std::int32_t expert : table.expert_ids) {
    if (expert >= 0) ++tokens[static_cast<std::size_t>(expert)];
  }
  return tokens;
}

/// Loads are tokens, or stand for them.
std::vector<std::int64_t> to_tokens(const std::vector<double>& loads) {
  std::vector<std::int64_t> tokens;
  for (const double load : loads) {
    tokens.push_back(load < kMostBatchTokens ? std::llround(load) : static_cast<std::int64_t>(kMostBatchTokens));
  }
  return tokens;
}

BalanceReport replay_trace(const BalanceOptions& options) {
  const std::string path = options.source.substr(kTracePrefix.size());
  BalanceReport report{.source = options.source, .cluster = {}, .results = {}, .loads = {}, .no_eplb = {}};
  LayerList present;
  balance::LayersBefore before;
  Progress progress(fmt::format("replaying {}", path), options.quiet);
  const bool foretells = options.foretell == "layers";
  const auto replay_layer = [&](TraceLayer&& layer) {
    present.add(layer.layer);
    if (options.layer >= 0 && layer.layer != options.layer) {
      if (foretells) before.add(layer.layer, std::move(layer.table));
      return;
    }
    report.cluster = make_cluster(options, {}, layer.table.num_experts);
    report.loads.push_back(count_tokens(layer.table));
    balance::ReplayRules rules;
    rules.plan = make_request(options, report.cluster);
    rules.plan_on = options.plan_on == "windows" ? balance::PlanOn::kWindows : balance::PlanOn::kFirstHalf;
    rules.batch_tokens = options.batch_tokens;
    rules.half_life_tokens = options.half_life_tokens;
    rules.prefetch_per_rank = options.prefetch;
    rules.prefers_near = options.prefers_near;
    rules.locality.max_imbalance = options.max_imbalance;
    rules.layers_before = before.of(layer.layer, layer.table.num_tokens);
    for (const balance::Policy policy :
         policies_for(options, static_cast<std::size_t>(layer.table.num_experts), report)) {
      report.results.push_back(balance::replay(layer.table, layer.layer, policy, rules));
    }
    if (foretells) before.add(layer.layer, std::move(layer.table));
  };
  read_trace_layers(path == kStdout ? "/dev/stdin" : path, replay_layer,
                    [&](std::int64_t done, std::int64_t total) { progress.update(done, total); });
  progress.finish();
  if (report.results.empty()) reject_layer(options, path, present);
  sort_by_policy(report.results, policies_of(options));
  return report;
}

BalanceReport score_load_file(const BalanceOptions& options) {
  const balance::LoadFile file = balance::read_load_file(options.loads_path);
  const auto num_experts = static_cast<std::int32_t>(file.loads.front().size());
  BalanceReport report{.source = options.loads_path,
                       .cluster = make_cluster(options, file, num_experts),
                       .results = {},
                       .loads = {},
                       .no_eplb = {}};
  LayerList present;
  for (std::size_t layer = 0; layer < file.loads.size(); ++layer) {
    present.add(static_cast<std::int64_t>(layer));
    if (options.layer >= 0 && static_cast<std::size_t>(options.layer) != layer) continue;
    report.loads.push_back(to_tokens(file.loads[layer]));
    balance::PlanRequest request = make_request(options, report.cluster);
    if (!file.current.empty()) {
      request.current = balance::SlotTable::empty(report.cluster.slots_of_rank);
      const std::vector<std::int32_t>& current = file.current[file.current.size() == 1 ? 0 : layer];
      if (current.size() != request.current->expert.size()) {
        throw Error(ErrorCode::kCorruptInput,
                    fmt::format("loads '{}': \"current\" has {} slots in layer {}, expected {}", options.loads_path,
                                current.size(), layer, request.current->expert.size()));
      }
      request.current->expert = current;
    }
    for (const balance::Policy policy : policies_for(options, file.loads.front().size(), report)) {
      report.results.push_back(
          balance::score_loads(file.loads[layer], static_cast<std::int32_t>(layer), policy, request));
    }
  }
  if (report.results.empty()) reject_layer(options, options.loads_path, present);
  sort_by_policy(report.results, policies_of(options));
  return report;
}

void run_balance(BalanceOptions options) {
  if (options.source.empty() == options.loads_path.empty()) {
    reject("expected trace:FILE or --loads FILE, and not both");
  }
  if (!options.source.empty() && !options.source.starts_with(kTracePrefix)) {
    reject(
        fmt::format("the source is '{}', expected trace:FILE, or --loads FILE for loads", shortened(options.source)));
  }
  if (options.expert_bytes == 0) options.expert_bytes = kDefaultExpertBytes;
  options.targets.check();
  const std::optional<balance::MetricsAddress> address =
      options.serve_address.empty() ? std::nullopt
                                    : std::optional(balance::MetricsAddress::parse(options.serve_address));
  const BalanceReport report = options.source.empty() ? score_load_file(options) : replay_trace(options);
  const ResultTargets& targets = options.targets;
  const Json record = balance_json(report, options);
  if (!targets.json.empty()) write_output(targets.json, json_text(record));
  if (!targets.html.empty()) write_output(targets.html, render_balance_page(record));
  if (targets.leave_stdout()) print(render_balance(report, options));
  if (address) serve_metrics(report, *address);
}

}  // namespace

void add_balance_command(CLI::App& app, int& /*exit_code*/) {
  CLI::App* const command =
      app.add_subcommand("balance", "Plan where experts go, and score it on a recorded routing or on loads");
  const auto options = std::make_shared<BalanceOptions>();
  add_balance_options(*command, *options);
  command->footer(
      "Balancedness is the mean over the largest load of a rank, from 0 to 1. The bound is the same with the best "
      "shares\n"
      "of every batch that the placement allows; with --loads, that of any placement in these slots.\n"
      "\n"
      "Policies: none leaves everything where it is; eplb is the published algorithm, its replicas take turns;\n"
      "incremental plans with as few copies as needed, its replicas are chosen by a hash of the token's position with\n"
      "quotas from the loads of late: of batches before, and of this batch in the layers before. per-batch has the "
      "same\n"
      "placement and exact quotas for every batch.\n"
      "\n"
      "Examples:\n"
      "  epistle balance trace:routing.jsonl.gz --ranks 8 --slots 80\n"
      "  epistle balance trace:routing.jsonl.gz --ranks 8 --slots 80 --plan-on windows --policy eplb,incremental\n"
      "  epistle balance --loads loads.json --ranks 32 --slots 288 --domains 4 --groups 8 --json plan.json\n"
      "  python -m epistle.loads recorded.pt | epistle balance --loads - --ranks 32 --slots 288 --html plan.html\n"
      "  epistle balance trace:- --ranks 8 --slots 80 --serve 9400 < routing.jsonl");
  command->callback([options] { run_balance(*options); });
}

}  // namespace epistle::cli
