#include "bench_options.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string_view>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "epistle/error.hpp"
#include "epistle/models.hpp"
#include "epistle/trace.hpp"

#include "group/limits.hpp"

namespace epistle::cli {
namespace {

constexpr std::int32_t kMaxInt32 = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kMaxInt64 = std::numeric_limits<std::int64_t>::max();
constexpr std::string_view kDefaultModel = "qwen3-30b-a3b";
constexpr std::int32_t kDefaultAlignment = 1;

template <typename Value>
Value lookup(const std::map<std::string, Value>& values, const std::string& text, std::string_view option) {
  const auto found = values.find(text);
  if (found != values.end()) return found->second;
  std::string known;
  for (const auto& [name, value] : values) known += (known.empty() ? "" : ", ") + name;
  throw Error(ErrorCode::kInvalidArgument, fmt::format("{} is '{}'; it takes {}", option, text, known));
}

const std::map<std::string, DType>& dtypes() {
  static const std::map<std::string, DType> all = {
      {"bf16", DType::kBf16}, {"fp16", DType::kFp16}, {"fp32", DType::kFp32}, {"fp8", DType::kFp8E4m3}};
  return all;
}

const std::map<std::string, OutputLayout>& layouts() {
  static const std::map<std::string, OutputLayout> all = {{"token_major", OutputLayout::kTokenMajor},
                                                          {"expert_major", OutputLayout::kExpertMajor},
                                                          {"expert_slots", OutputLayout::kExpertSlots}};
  return all;
}

/// Fills hidden, num_experts and top_k from explicit options, the trace and the model, in this order.
void choose_shape(const BenchOptions& options, BenchPlan& plan, RoutingRequest& request) {
  const bool custom = options.hidden > 0 && options.num_experts > 0 && options.top_k > 0;
  const bool from_trace = plan.routing.kind == RoutingKind::kTrace;
  DispatcherConfig& config = plan.spec.config;
  const ModelPreset* model = nullptr;
  if (!options.model.empty()) {
    model = &find_model(options.model);
  } else if (!custom && !(from_trace && options.hidden > 0)) {
    model = &find_model(kDefaultModel);
  }
  if (model != nullptr) {
    plan.model = model->name;
    config.hidden = model->hidden;
    config.num_experts = model->num_experts;
    config.top_k = model->top_k;
    request.num_groups = model->num_groups;
    request.groups_per_token = model->groups_per_token;
  }
  // A recorded routing brings its own experts: it wins over a default model, and must agree with a chosen one.
  if (from_trace && options.model.empty()) {
    config.num_experts = 0;
    config.top_k = 0;
  }
  if (options.hidden > 0) config.hidden = options.hidden;
  if (options.num_experts > 0) config.num_experts = options.num_experts;
  if (options.top_k > 0) config.top_k = options.top_k;
  const bool changed = model != nullptr && (config.num_experts != model->num_experts);
  if (changed) {
    request.num_groups = 1;
    request.groups_per_token = 1;
  }
  if (model != nullptr &&
      (config.hidden != model->hidden || config.num_experts != model->num_experts || config.top_k != model->top_k)) {
    plan.model.clear();
  }
}

void choose_layout(const BenchOptions& options, BenchPlan& plan) {
  DispatcherConfig& config = plan.spec.config;
  config.layout = lookup(layouts(), options.layout, "--layout");
  config.alignment = options.alignment > 0 ? options.alignment : kDefaultAlignment;
  if (options.alignment > 0 && config.layout != OutputLayout::kExpertMajor) {
    throw Error(ErrorCode::kInvalidArgument,
                "--alignment pads the groups of --layout expert_major; the layout is " + options.layout);
  }
  config.sizing =
      lookup<Sizing>({{"exact", Sizing::kExact}, {"capacity", Sizing::kCapacity}}, options.sizing, "--sizing");
  config.overflow = lookup<OverflowPolicy>({{"error", OverflowPolicy::kError}, {"drop", OverflowPolicy::kDrop}},
                                           options.overflow, "--overflow");
  config.capacity_rows = options.capacity_rows;
  config.combine = lookup<CombineMode>({{"hierarchical", CombineMode::kHierarchical}, {"flat", CombineMode::kFlat}},
                                       options.combine, "--combine");
  config.apply_weights = lookup<bool>({{"on", true}, {"off", false}}, options.weights, "--weights");
  config.dtype = lookup(dtypes(), options.dtype, "--dtype");
}

void drop_beyond_capacity(const BenchOptions& options, int num_ranks, BenchPlan& plan) {
  DispatcherConfig& config = plan.spec.config;
  if (options.drop_capacity <= 0.0) {
    if (options.pad_to_capacity) {
      throw Error(ErrorCode::kInvalidArgument, "--pad-to-capacity needs --drop-capacity F, which sets the capacity");
    }
    return;
  }
  const CapacityOptions capacity{
      .factor = options.drop_capacity,
      .policy = lookup<DropPolicy>({{"prob", DropPolicy::kProbability}, {"position", DropPolicy::kPosition}},
                                   options.drop_policy, "--drop-policy"),
      .pad = options.pad_to_capacity};
  for (RoutingTable& table : plan.tables) {
    const CapacityResult result = apply_capacity(table, capacity);
    plan.dropped_by_router += result.dropped;
    plan.router_capacity = result.capacity;
  }
  if (!options.pad_to_capacity) return;
  if (config.layout != OutputLayout::kExpertSlots || options.capacity_rows > 0) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("--pad-to-capacity fills a fixed block per expert: it needs --layout expert_slots without "
                            "--capacity-rows; the layout is {}, --capacity-rows {}",
                            options.layout, options.capacity_rows));
  }
  config.capacity_rows = plan.router_capacity * num_ranks;
}

}  // namespace

void add_bench_options(CLI::App& command, BenchOptions& options) {
  const auto positive = CLI::Range(1, kMaxInt32).description("");
  command
      .add_option("--dispatcher", options.dispatchers,
                  "Dispatchers to compare, separated by commas (epistle bench "
                  "--list names them; default: direct,alltoall)")
      ->delimiter(',')
      ->type_name("NAME,...");
  command.add_option("--ranks", options.num_ranks, "Ranks of the group (default: 2, or those of the launcher)")
      ->check(CLI::Range(1, kMaxRanks).description(""))
      ->type_name("N");
  command.add_option("--group", options.group, "Ranks are threads or processes (default: threads)")
      ->check(CLI::IsMember({"threads", "processes"}).description(""))
      ->type_name("KIND");
  command
      .add_option("--model", options.model, "Shape of a published model; see 'epistle models' (default: qwen3-30b-a3b)")
      ->type_name("NAME");
  command.add_option("--hidden", options.hidden, "Elements per row, instead of the model's")
      ->check(positive)
      ->type_name("N");
  command.add_option("--experts", options.num_experts, "Experts, instead of the model's")
      ->check(positive)
      ->type_name("N");
  command.add_option("--top-k", options.top_k, "Experts per token, instead of the model's")
      ->check(positive)
      ->type_name("K");
  command.add_option("--tokens", options.num_tokens, "Tokens per rank (default: 4096)")
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{1} << 28).description(""))
      ->type_name("N");
  command.add_option("--dtype", options.dtype, "bf16, fp16, fp32, or fp8 (e4m3 + scales; combined in bf16)")
      ->type_name("TYPE");
  command.add_option("--layout", options.layout, "token_major, expert_major or expert_slots")->type_name("LAYOUT");
  command.add_option("--alignment", options.alignment, "expert_major: rows that groups are padded to (default: 1)")
      ->check(positive)
      ->type_name("ROWS");
  command.add_option("--sizing", options.sizing, "exact or capacity (static shapes)")->type_name("SIZING");
  command
      .add_option("--capacity-rows", options.capacity_rows,
                  "Rows per rank (capacity sizing) or per expert (expert_slots)")
      ->check(CLI::Range(std::int64_t{1}, kMaxInt64).description(""))
      ->type_name("ROWS");
  command.add_option("--overflow", options.overflow, "What does not fit: error or drop")->type_name("POLICY");
  command
      .add_option("--routing", options.routing, "uniform, balanced, forced-random, zipf:A, lognormal:S or trace:FILE")
      ->type_name("SPEC");
  command.add_option("--layer", options.trace_layer, "Layer of the trace (default: its first)")
      ->check(CLI::Range(0, kMaxInt32).description(""))
      ->type_name("L");
  command.add_option("--combine", options.combine, "hierarchical or flat")->type_name("MODE");
  command.add_option("--weights", options.weights, "Combine multiplies by the routing weights: on or off")
      ->type_name("on|off");
  command
      .add_option("--drop-capacity", options.drop_capacity,
                  "Capacity factor of the router: drops what an expert gets beyond F times the mean")
      ->check(CLI::PositiveNumber.description(""))
      ->type_name("F");
  command.add_option("--drop-policy", options.drop_policy, "Which assignments stay: prob (highest weight) or position")
      ->type_name("POLICY");
  command.add_flag("--pad-to-capacity", options.pad_to_capacity,
                   "With --drop-capacity and expert_slots: every expert's block has the router's capacity");
  command.add_option("--workers", options.num_workers, "Threads per rank (default: 1)")
      ->check(positive)
      ->type_name("N");
  command.add_option("--iters", options.num_iterations, "Measured iterations (default: 30)")
      ->check(positive)
      ->type_name("N");
  command.add_option("--warmup", options.num_warmups, "Iterations before these (default: 5)")
      ->check(CLI::Range(0, kMaxInt32).description(""))
      ->type_name("N");
  command.add_option("--seed", options.seed, "Seed of routing and data (default: 1)")->type_name("N");
  command.add_flag("--no-verify", options.no_verify, "Do not compare every output bit with the reference");
  command.add_flag("--stage-combine", options.stage_combine,
                   "Expert outputs lie in private memory: combine copies them first");
  command.add_option("--json", options.json_target, "Write the result as JSON to a file, or '-' for standard output")
      ->type_name("FILE");
  command.add_flag("--quiet", options.quiet, "No progress bar");
}

BenchPlan make_bench_plan(const BenchOptions& options, int num_ranks) {
  BenchPlan plan;
  plan.num_ranks = num_ranks;
  plan.routing = RoutingSpec::parse(options.routing);
  if (options.trace_layer >= 0 && plan.routing.kind != RoutingKind::kTrace) {
    throw Error(ErrorCode::kInvalidArgument, "--layer chooses a layer of a trace; --routing is " + options.routing);
  }
  RoutingRequest request{.num_tokens = options.num_tokens,
                         .num_ranks = num_ranks,
                         .seed = options.seed,
                         .trace_layer = options.trace_layer};
  choose_shape(options, plan, request);
  choose_layout(options, plan);
  DispatcherConfig& config = plan.spec.config;
  config.max_tokens = options.num_tokens;
  config.num_workers = options.num_workers;
  request.num_experts = config.num_experts;
  request.top_k = config.top_k;
  for (int rank = 0; rank < num_ranks; ++rank) {
    request.rank = rank;
    plan.tables.push_back(generate_routing(plan.routing, request));
  }
  config.num_experts = plan.tables.front().num_experts;
  config.top_k = plan.tables.front().top_k;
  drop_beyond_capacity(options, num_ranks, plan);
  plan.spec.dispatchers = options.dispatchers;
  plan.spec.seed = options.seed;
  plan.spec.num_iterations = options.num_iterations;
  plan.spec.num_warmups = options.num_warmups;
  plan.spec.verify = !options.no_verify;
  plan.spec.stage_combine = options.stage_combine;
  return plan;
}

}  // namespace epistle::cli
