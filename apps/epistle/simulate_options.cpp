#include "simulate_options.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "choice_option.hpp"
#include "cluster_option.hpp"
#include "core/json_field.hpp"
#include "core/reject.hpp"
#include "json_option.hpp"
#include "number_options.hpp"
#include "plan/plan_model.hpp"
#include "routing/limits.hpp"

namespace epistle::cli {
namespace {

constexpr double kMaxWidth = 1e6;
constexpr std::int64_t kMaxStepTokens = 100'000'000;
constexpr std::int64_t kMaxSteps = 100'000;
constexpr std::int64_t kMaxLoopBytes = std::numeric_limits<std::int64_t>::max() / 2;
constexpr std::int32_t kMaxSimulatedSms = 1024;

void add_shape_options(CLI::App& command, SimulateOptions& options) {
  command
      .add_option("--model", options.model,
                  "A model of 'epistle models', or its config.json (default: qwen3-235b-a22b)")
      ->type_name("NAME|FILE");
  add_number(command, "--experts", options.num_experts, {1, kMaxRoutedExperts},
             "Experts, instead of the model's (default with a trace: the trace's)");
  add_number(command, "--top-k", options.top_k, {1, kMaxRoutedExperts}, "Experts per token, likewise");
  add_number(command, "--hidden", options.hidden, {1.0, kMaxWidth}, "Elements per row, instead of the model's")
      ->type_name("N");
  add_number(command, "--ffn", options.expert_ffn, {1.0, kMaxWidth}, "Width of an expert, instead of the model's")
      ->type_name("N");
  add_number(command, "--groups", options.num_groups, {1, kMaxRoutedExperts},
             "Expert groups of the router, instead of the model's; forced-random keeps to them");
  add_number(command, "--groups-per-token", options.groups_per_token, {1, kMaxRoutedExperts},
             "Groups that a token may use, instead of the model's");
  command
      .add_option("--precision", options.precision,
                  "Of experts: bf16, fp8, fp8_block or fp4 (default: what a config.json stores them in, or fp8_block)")
      ->type_name("TYPE");
}

void add_token_options(CLI::App& command, SimulateOptions& options) {
  command.add_option("--cluster", options.cluster, "A preset, or a JSON file (default: h100-hgx); see docs/plan.md")
      ->type_name("NAME|FILE");
  add_number(command, "--ranks", options.num_ranks, {1, simulate::kMaxSimulatedRanks},
             "Ranks of the EP group (default: those of one domain)");
  add_number(command, "--tokens", options.tokens_per_rank, {1, kMaxStepTokens},
             "Tokens of a step per rank (default: 4096)");
  command
      .add_option("--routing", options.routing,
                  "uniform (default), balanced, forced-random, zipf:A, lognormal:S or trace:FILE")
      ->type_name("ROUTING");
  add_number(command, "--layer", options.trace_layer, {0, kMaxInt32}, "Layer of the trace (default: its first)")
      ->type_name("L");
  add_number(command, "--seed", options.seed, {0, std::numeric_limits<std::int64_t>::max()},
             "Seed of the routing (default: 1)");
  add_number(command, "--steps", options.num_steps, {1, kMaxSteps}, "Steps that follow each other (default: 1)");
  add_number(command, "--drift", options.drift, {0.0, 1.0},
             "Part of the experts that change places with others from step to step (default: 0)")
      ->type_name("PART");
}

void add_policy_options(CLI::App& command, SimulateOptions& options) {
  const std::vector<std::string> names(std::begin(balance::kPolicyNames), std::end(balance::kPolicyNames));
  command
      .add_option(
          "--policy", options.policy,
          "Who moves experts between steps: none (default), eplb, incremental or per-batch; see docs/balance.md")
      ->check(CLI::IsMember(names).description(""))
      ->type_name("NAME");
  add_number(command, "--slots", options.num_slots, {1, kMaxInt32},
             "Slots of all ranks together; more than experts hold copies (default: one for every expert)");
  command
      .add_option("--placement", options.placement,
                  "First placement: JSON, for every rank the experts of its slots; or a result of balance --json")
      ->type_name("FILE");
  add_number(command, "--replan-every", options.replan_every, {1, kMaxSteps}, "Steps between plans (default: 1)")
      ->type_name("STEPS");
  add_number(command, "--window", options.window_steps, {1, kMaxSteps}, "Steps that a plan remembers (default: 16)")
      ->type_name("STEPS");
  add_number(command, "--bytes-per-expert", options.expert_bytes, {1, kMaxLoopBytes},
             "Weights of an expert (default: from the model and --precision)")
      ->type_name("BYTES");
  add_number(command, "--budget", options.budget_bytes, {0, kMaxLoopBytes},
             "Weights that a plan may copy between ranks (default: no limit)")
      ->type_name("BYTES");
  command.add_flag("--near", options.prefers_near,
                   "incremental: tokens stay on their rank, or in their domain, as far as the quotas allow");
}

simulate::TokenRules make_token_rules(const SimulateOptions& options, const PlanModel& model, std::int32_t num_ranks) {
  simulate::TokenRules rules;
  rules.routing = RoutingSpec::parse(options.routing);
  const bool is_trace = rules.routing.kind == RoutingKind::kTrace;
  if (options.trace_layer >= 0 && !is_trace) epistle::reject("--layer is for --routing trace:FILE");
  const auto size = [&](std::int32_t given, std::int32_t of_model) {
    if (given > 0) return given;
    // A trace says its own unless somebody asks for a model's.
    return is_trace && options.model.empty() ? 0 : of_model;
  };
  rules.num_experts = size(options.num_experts, model.num_experts);
  rules.top_k = size(options.top_k, model.top_k);
  rules.num_groups = options.num_groups > 0 ? options.num_groups : model.num_groups;
  rules.groups_per_token = options.groups_per_token > 0 ? options.groups_per_token : model.groups_per_token;
  const bool asks_groups = options.num_groups > 0 || options.groups_per_token > 0;
  if (asks_groups && rules.routing.kind != RoutingKind::kForcedRandom) {
    epistle::reject("--groups and --groups-per-token are for --routing forced-random");
  }
  rules.num_ranks = num_ranks;
  rules.tokens_per_rank = options.tokens_per_rank;
  rules.seed = static_cast<std::uint64_t>(options.seed);
  rules.trace_layer = options.trace_layer;
  rules.drift = options.drift;
  return rules;
}

}  // namespace

void add_simulate_options(CLI::App& command, SimulateOptions& options) {
  add_shape_options(command, options);
  add_token_options(command, options);
  add_policy_options(command, options);
  command.add_option("--dispatchers", options.dispatchers, "Those that are timed (default: all)")
      ->delimiter(',')
      ->type_name("NAME,...");
  add_number(command, "--sms", options.num_sms, {1, kMaxSimulatedSms},
             "SMs of exchanges that can choose (default: the most that plans consider)");
  command
      .add_option("--measurements", options.measurements,
                  "Refit the curves to these: tables of calibrate, or records of bench")
      ->expected(1, CLI::detail::expected_max_vector_size)
      ->type_name("FILE...");
  add_json_option(command, options.targets.json);
  add_html_option(command, options.targets.html);
  command.add_flag("-q,--quiet", options.quiet, "No progress bar");
}

simulate::SimulateRequest make_simulate_request(const SimulateOptions& options) {
  constexpr const char* kDefaultModel = "qwen3-235b-a22b";
  const PlanModel model = read_plan_model(options.model.empty() ? kDefaultModel : options.model);
  simulate::SimulateRequest request;
  request.cluster = cluster_of_option(options.cluster);
  const std::int32_t num_ranks = options.num_ranks > 0 ? options.num_ranks : request.cluster.gpus_per_domain();
  request.tokens = make_token_rules(options, model, num_ranks);
  if (options.tokens_per_rank * num_ranks > kMaxStepTokens) {
    epistle::reject(fmt::format("{} tokens per rank on {} ranks are more than {} per step; give fewer",
                                options.tokens_per_rank, num_ranks, kMaxStepTokens));
  }
  request.num_steps = options.num_steps;
  request.hidden = options.hidden > 0 ? options.hidden : model.routed_hidden;
  request.expert_ffn = options.expert_ffn > 0 ? options.expert_ffn : model.expert_ffn;
  request.precision = choose_precision(options.precision, model.stored_precision);
  request.num_sms = options.num_sms;
  request.dispatchers = options.dispatchers;
  request.num_slots = options.num_slots;
  if (!options.placement.empty()) request.placement = read_placement(options.placement);
  request.loop.policy = balance::policy_named(options.policy);
  if (options.prefers_near && request.loop.policy != balance::Policy::kIncremental) {
    epistle::reject("--near is for --policy incremental");
  }
  request.loop.replan_every = options.replan_every;
  request.loop.window_steps = options.window_steps;
  request.loop.prefers_near = options.prefers_near;
  request.loop.plan.expert_bytes = options.expert_bytes > 0
                                       ? options.expert_bytes
                                       : std::llround(model.expert_matrices * request.hidden * request.expert_ffn *
                                                      weight_bytes_per_element(request.precision));
  if (options.budget_bytes >= 0) request.loop.plan.budget_bytes = options.budget_bytes;
  return request;
}

balance::SlotTable read_placement(const std::string& file) {
  const JsonField::Json document = read_json_file(file);
  JsonField field(document, file);
  if (document.is_object()) {
    if (const auto results = field.find("results")) {
      const std::vector<JsonField> entries = results->items();
      if (entries.size() != 1) {
        results->fail(fmt::format("has {} entries; write one policy and one layer (balance --policy P --layer L)",
                                  entries.size()));
      }
      field = entries.front().at("placement");
    } else {
      field = field.at("placement");
    }
  }
  balance::SlotTable table;
  table.begin.push_back(0);
  for (const JsonField& rank : field.items()) {
    for (const JsonField& expert : rank.items()) {
      table.expert.push_back(static_cast<std::int32_t>(expert.integer({balance::kEmptySlot, kMaxRoutedExperts - 1})));
    }
    table.begin.push_back(table.num_slots());
  }
  return table;
}

}  // namespace epistle::cli
