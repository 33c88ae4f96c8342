#include "bench_plan.hpp"

#include <algorithm>
#include <cstddef>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <string_view>
#include <utility>
#include <variant>

#include <fmt/format.h>

#include "epistle/cuda.hpp"
#include "epistle/dispatcher_info.hpp"
#include "epistle/error.hpp"
#include "epistle/models.hpp"

#include "bench_contenders.hpp"
#include "bench_placement.hpp"
#include "bench_tokens.hpp"
#include "core/reject.hpp"
#include "dispatch/call/resolved_config.hpp"
#include "group/limits.hpp"
#include "measure/bench_collector.hpp"
#include "measure/bench_memory.hpp"
#include "output.hpp"
#include "report/format.hpp"
#include "topology/memory.hpp"

namespace epistle::cli {
namespace {

constexpr std::string_view kDefaultModel = "qwen3-30b-a3b";
constexpr std::string_view kOracle = "reference";
constexpr std::int32_t kDefaultAlignment = 1;

[[noreturn]] void throw_no_gpu() {
  throw Error(ErrorCode::kUnsupported, fmt::format("--device cuda: {}", cuda_support().reason));
}

template <typename Value>
Value lookup(const std::map<std::string, Value>& values, const std::string& text, std::string_view option) {
  const auto found = values.find(text);
  if (found != values.end()) return found->second;
  std::string known;
  for (const auto& [name, value] : values) known += (known.empty() ? "" : ", ") + name;
  reject(fmt::format("{} is '{}'; it takes {}", option, text, known));
}

const std::map<std::string, DType>& dtypes() {
  static const std::map<std::string, DType> all = {
      {"bf16", DType::kBf16}, {"fp16", DType::kFp16}, {"fp32", DType::kFp32}, {"fp8", DType::kFp8E4m3}};
  return all;
}

const std::map<std::string, Wire>& wires() {
  static const std::map<std::string, Wire> all = {{"as-given", AsGiven{}},
                                                  {"fp8", Fp8Blocks{}},
                                                  {"fp8-pow2", Fp8Blocks{.powers_of_two = true}},
                                                  {"fp8-ue8m0", Fp8Blocks{.scales = ScaleFormat::kUe8m0}},
                                                  {"fp8-columns", Fp8Blocks{.order = ScaleOrder::kColumns}}};
  return all;
}

const std::map<std::string, OutputLayout>& layouts() {
  static const std::map<std::string, OutputLayout> all = {{"token_major", OutputLayout::kTokenMajor},
                                                          {"expert_major", OutputLayout::kExpertMajor},
                                                          {"expert_blocks", OutputLayout::kExpertBlocks}};
  return all;
}

const std::map<std::string, SumOrder>& orders() {
  static const std::map<std::string, SumOrder> all = {{"hierarchical", SumOrder::kHierarchical},
                                                      {"flat", SumOrder::kFlat},
                                                      {"deepep_v2", SumOrder::kDeepEpV2},
                                                      {"domains", SumOrder::kDomains}};
  return all;
}

const std::map<std::string, CudaMover>& movers() {
  static const std::map<std::string, CudaMover> all = {{"auto", CudaMover::kAuto},
                                                       {"vector", CudaMover::kVector},
                                                       {"bulk", CudaMover::kBulk},
                                                       {"copy-engines", CudaMover::kCopyEngines}};
  return all;
}

void check_dispatchers(const std::vector<std::string>& names, Device device) {
  const std::vector<const DispatcherInfo*> registry = dispatchers_of(device);
  for (auto name = names.begin(); name != names.end(); ++name) {
    const bool known = std::any_of(registry.begin(), registry.end(),
                                   [&](const DispatcherInfo* info) { return info->name() == *name; });
    if (!known) {
      std::string all;
      for (const DispatcherInfo* info : registry) all += fmt::format("{}{}", all.empty() ? "" : ", ", info->name());
      reject(fmt::format("--dispatcher names '{}'; there {} {}", *name, registry.size() == 1 ? "is" : "are", all));
    }
    if (std::find(names.begin(), name, *name) != name) {
      reject(fmt::format("--dispatcher names '{}' twice; give every dispatcher once", *name));
    }
  }
}

/// One that all dispatchers of the device serve.
SumOrder default_order(const BenchPlan& plan) noexcept {
  return plan.spec.domain_size < plan.num_ranks ? SumOrder::kDomains : SumOrder::kHierarchical;
}

/// On GPUs only what runs with several ranks on one of them, too. A comparison takes all but the oracle, which is slow.
std::vector<std::string> default_dispatchers(Device device, bool compares, bool one_domain) {
  if (compares) {
    std::vector<std::string> names;
    for (const DispatcherInfo* const info : dispatchers_of(device)) {
      // Within one domain those that join domains are another's equal.
      const bool is_another = one_domain && info->capabilities().joins_domains;
      if (info->name() != kOracle && !is_another) names.emplace_back(info->name());
    }
    return names;
  }
  if (device == Device::kCuda) return {one_domain ? "direct" : "hybrid"};
  if (one_domain) return {"direct", "alltoall"};
  return {"hybrid", "alltoall"};
}

/// Fills in what belongs to one device, and rejects what belongs to the other.
void choose_device(const BenchOptions& options, int num_ranks, BenchSpec& spec) {
  spec.domain_size = resolve_domain_size(options.domain_size, num_ranks);
  spec.device = device_of(options);
  const bool on_cuda = spec.device == Device::kCuda;
  const auto belongs_to = [&](Device device, bool given, std::string_view option) {
    if (!given || device == spec.device) return;
    reject(fmt::format("{} belongs to --device {}; the device is {}", option, to_string(device), options.device));
  };
  belongs_to(Device::kHost, options.num_workers > 0, "--workers");
  belongs_to(Device::kHost, options.no_bind, "--no-bind");
  belongs_to(Device::kCuda, options.num_sms > 0, "--sms");
  belongs_to(Device::kCuda, !options.mover.empty(), "--mover");
  belongs_to(Device::kCuda, options.num_runs > 0, "--runs");
  belongs_to(Device::kCuda, options.num_replays > 0, "--replays");
  belongs_to(Device::kCuda, options.num_host_calls > 0, "--host-calls");
  spec.bind = !on_cuda && !options.no_bind;
  spec.host.num_workers = options.num_workers > 0 ? options.num_workers : 1;
  spec.cuda.num_sms = options.num_sms;
  if (options.num_runs > 0) spec.runs_per_sample = options.num_runs;
  if (!options.mover.empty()) spec.cuda.mover = lookup(movers(), options.mover, "--mover");
  spec.dispatchers = options.dispatchers;
  if (spec.dispatchers.empty())
    spec.dispatchers = default_dispatchers(spec.device, options.compares, spec.domain_size == num_ranks);
  check_dispatchers(spec.dispatchers, spec.device);
}

const ModelPreset& chosen_model(const std::string& name) {
  try {
    return find_model(name);
  } catch (const Error& error) {
    // A word on the command line, not an input that is missing.
    reject("--model: " + reason_of(error));
  }
}

bool has_shape_of(const DispatcherConfig& config, const ModelPreset& model) {
  return config.hidden == model.hidden && config.num_experts == model.num_experts && config.top_k == model.top_k;
}

/// Fills hidden, num_experts and top_k: single options win over the model. A trace brings its experts with it; what is
/// left to it stays 0.
void choose_shape(const BenchOptions& options, BenchPlan& plan, RoutingRequest& request) {
  const bool custom = options.hidden > 0 && options.num_experts > 0 && options.top_k > 0;
  const bool from_trace = plan.routing.kind == RoutingKind::kTrace;
  DispatcherConfig& config = plan.spec.config;
  const bool needs_default = options.model.empty() && !custom && !(from_trace && options.hidden > 0);
  if (needs_default || !options.model.empty()) {
    const ModelPreset& model = needs_default ? find_model(kDefaultModel) : chosen_model(options.model);
    config.hidden = model.hidden;
    if (!from_trace || !needs_default) {
      config.num_experts = model.num_experts;
      config.top_k = model.top_k;
    }
    if (options.num_experts == 0 || options.num_experts == model.num_experts) {
      request.num_groups = model.num_groups;
      request.groups_per_token = model.groups_per_token;
    }
  }
  if (options.hidden > 0) config.hidden = options.hidden;
  if (options.num_experts > 0) config.num_experts = options.num_experts;
  if (options.top_k > 0) config.top_k = options.top_k;
}

/// The name of the model that has the shape of the plan, where one was asked for.
std::string model_name(const BenchOptions& options, const DispatcherConfig& config) {
  const ModelPreset& model = find_model(options.model.empty() ? kDefaultModel : std::string_view(options.model));
  return has_shape_of(config, model) ? std::string(model.name) : std::string();
}

Layout layout_of(OutputLayout kind, const BenchOptions& options) {
  switch (kind) {
    case OutputLayout::kExpertMajor:
      return ExpertMajor{.alignment = options.alignment > 0 ? options.alignment : kDefaultAlignment};
    case OutputLayout::kExpertBlocks:
      return ExpertBlocks{.rows_per_expert = options.capacity_rows};
    case OutputLayout::kTokenMajor:
      break;
  }
  return TokenMajor{};
}

void choose_layout(const BenchOptions& options, DispatcherConfig& config) {
  const OutputLayout layout = lookup(layouts(), options.layout, "--layout");
  const bool has_blocks = layout == OutputLayout::kExpertBlocks;
  config.layout = layout_of(layout, options);
  if (options.alignment > 0 && layout != OutputLayout::kExpertMajor) {
    reject("--alignment pads the groups of --layout expert_major; the layout is " + options.layout);
  }
  const auto sizing = lookup<SizingMode>({{"exact", SizingMode::kExact}, {"capacity", SizingMode::kCapacity}},
                                         options.sizing, "--sizing");
  if (sizing == SizingMode::kCapacity) {
    config.sizing = Capacity{.rows_per_rank = has_blocks ? 0 : options.capacity_rows};
  }
  if (!options.combine.empty()) config.order = lookup(orders(), options.combine, "--combine");
  config.apply_weights = lookup<bool>({{"on", true}, {"off", false}}, options.weights, "--weights");
  config.input = lookup(dtypes(), options.dtype, "--dtype");
  config.wire = lookup(wires(), options.wire, "--wire");
  if (std::holds_alternative<Fp8Blocks>(config.wire) && config.input != DType::kBf16) {
    reject(fmt::format("--wire {} quantises rows of --dtype bf16; they are {}", options.wire, options.dtype));
  }

  const bool has_capacity = sizing == SizingMode::kCapacity || has_blocks;
  if (has_capacity && options.capacity_rows == 0 && !options.pad_to_capacity) {
    reject(has_blocks ? "--layout expert_blocks needs --capacity-rows ROWS, the rows of every expert's block"
                      : "--sizing capacity needs --capacity-rows ROWS, the output rows of every rank");
  }
  if (!has_capacity && options.capacity_rows > 0) {
    reject(
        "--capacity-rows belongs to --sizing capacity or --layout expert_blocks; exact sizing has room for all rows");
  }
  const bool has_padding = sizing == SizingMode::kCapacity || layout != OutputLayout::kTokenMajor;
  if (options.no_zero_padding && !has_padding) {
    reject("--no-zero-padding needs padding: --sizing capacity, or --layout expert_major or expert_blocks");
  }
  config.zero_padding = !options.no_zero_padding;
  if (options.overflow.empty()) return;
  config.overflow = lookup<OverflowPolicy>({{"error", OverflowPolicy::kError}, {"drop", OverflowPolicy::kDrop}},
                                           options.overflow, "--overflow");
  if (!has_capacity) {
    reject("--overflow belongs to --sizing capacity or --layout expert_blocks; exact sizing has room for all rows");
  }
}

/// What the router's capacity factor does, or nothing without --drop-capacity.
CapacityOptions choose_capacity(const BenchOptions& options) {
  CapacityOptions capacity{
      .factor = options.drop_capacity, .policy = DropPolicy::kProbability, .pad = options.pad_to_capacity};
  if (!options.drop_policy.empty()) {
    capacity.policy = lookup<DropPolicy>({{"prob", DropPolicy::kProbability}, {"position", DropPolicy::kPosition}},
                                         options.drop_policy, "--drop-policy");
  }
  if (options.drop_capacity > 0.0 || (options.drop_policy.empty() && !options.pad_to_capacity)) {
    if (options.pad_to_capacity && (options.layout != "expert_blocks" || options.capacity_rows > 0)) {
      reject(
          fmt::format("--pad-to-capacity fills a fixed block per expert: it needs --layout expert_blocks without "
                      "--capacity-rows; the layout is {}, --capacity-rows {}",
                      options.layout, options.capacity_rows));
    }
    return capacity;
  }
  reject(fmt::format("{} needs --drop-capacity F, which sets the capacity",
                     options.pad_to_capacity ? "--pad-to-capacity" : "--drop-policy"));
}

/// Whether the tokens of all ranks are one sequence, of which each rank takes what follows the ranks before it.
bool shares_one_sequence(const BenchPlan& plan) {
  if (plan.routing.kind == RoutingKind::kTrace) return true;
  // Where ranks have equally many tokens, each can make its part alone.
  const std::vector<std::int64_t>& counts = plan.tokens_per_rank;
  return plan.routing.kind == RoutingKind::kBalanced &&
         std::any_of(counts.begin(), counts.end(), [&](std::int64_t count) { return count != counts.front(); });
}

/// All ranks' tables. A trace is read once.
std::vector<RoutingTable> make_tables(const BenchPlan& plan, RoutingRequest request) {
  std::vector<RoutingTable> tables;
  if (!shares_one_sequence(plan)) {
    for (request.rank = 0; request.rank < plan.num_ranks; ++request.rank) {
      request.num_tokens = plan.tokens_per_rank[static_cast<std::size_t>(request.rank)];
      tables.push_back(generate_routing(plan.routing, request));
    }
    return tables;
  }
  request.num_tokens = std::accumulate(plan.tokens_per_rank.begin(), plan.tokens_per_rank.end(), std::int64_t{0});
  request.num_ranks = 1;
  const RoutingTable all = generate_routing(plan.routing, request);
  auto ids = all.expert_ids.begin();
  auto weights = all.weights.begin();
  for (const std::int64_t num_tokens : plan.tokens_per_rank) {
    const auto num_entries = static_cast<std::ptrdiff_t>(num_tokens * all.top_k);
    tables.push_back(
        {num_tokens, all.num_experts, all.top_k, {ids, ids + num_entries}, {weights, weights + num_entries}});
    ids += num_entries;
    weights += num_entries;
  }
  return tables;
}

/// Takes what the options left open from the trace, and compares the rest.
void adopt_shape(const BenchOptions& options, const RoutingTable& table, DispatcherConfig& config) {
  const auto adopt = [&](std::int32_t& wanted, std::int32_t recorded, std::string_view option) {
    if (wanted != 0 && wanted != recorded) {
      reject(
          fmt::format("the trace was recorded with {} experts and top-{}, but {} asks for {}; leave {} out, so that "
                      "the trace decides",
                      table.num_experts, table.top_k, option, wanted, option));
    }
    wanted = recorded;
  };
  adopt(config.num_experts, table.num_experts, options.num_experts > 0 ? "--experts" : "--model");
  adopt(config.top_k, table.top_k, options.top_k > 0 ? "--top-k" : "--model");
}

void drop_beyond_capacity(const CapacityOptions& capacity, BenchPlan& plan) {
  if (capacity.factor <= 0.0) return;
  for (RoutingTable& table : plan.tables) {
    const CapacityResult result = apply_capacity(table, capacity);
    plan.dropped_by_router += result.dropped;
    plan.router_capacity = std::max(plan.router_capacity, result.capacity);
  }
  // At least one row: a block of none is no layout.
  if (capacity.pad) {
    plan.spec.config.layout =
        ExpertBlocks{.rows_per_expert = std::max<std::int64_t>(plan.router_capacity * plan.num_ranks, 1)};
  }
}

/// The ranks of --mask, ascending.
std::vector<int> masked_ranks(const BenchOptions& options, int num_ranks) {
  std::vector<int> masked(options.masked.begin(), options.masked.end());
  std::sort(masked.begin(), masked.end());
  masked.erase(std::unique(masked.begin(), masked.end()), masked.end());
  if (masked.empty() || masked.back() < num_ranks) return masked;
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("--mask names rank {}; there are {} ranks, and those from 1 to {} can be masked out",
                          masked.back(), num_ranks, num_ranks - 1));
}

/// What a dispatcher cannot do is told before any rank starts.
void check_capabilities(const BenchPlan& plan) {
  for (const std::string& name : plan.spec.dispatchers) {
    const auto reason =
        find_dispatcher(name, plan.spec.device).cannot_serve(plan.spec.config, plan.num_ranks, plan.spec.domain_size);
    if (reason) throw Error(ErrorCode::kUnsupported, fmt::format("--dispatcher {}: {}", name, *reason));
    if (plan.masked.empty() || find_dispatcher(name, plan.spec.device).capabilities().masks) continue;
    throw Error(
        ErrorCode::kUnsupported,
        fmt::format("--dispatcher {}: on {} it waits for all ranks, and --mask leaves some out; leave --mask out, "
                    "or take direct, low_latency or auto, or --device host",
                    name, to_string(plan.spec.device)));
  }
}

/// Pairs in a row are captured into a CUDA graph: all of a replay, and the half of the chains.
void check_capture(const BenchSpec& spec) {
  if (spec.device != Device::kCuda || (spec.num_chained_pairs == 0 && spec.num_replays == 0)) return;
  const std::string_view option = spec.num_chained_pairs > 0 ? "--chain" : "--replays";
  for (const std::string& name : spec.dispatchers) {
    if (find_dispatcher(name, spec.device).capabilities().graph_capture) continue;
    throw Error(
        ErrorCode::kUnsupported,
        fmt::format("--dispatcher {}: {} captures calls into a CUDA graph, and those of {} cannot be; use direct", name,
                    option, name));
  }
  if (std::holds_alternative<Capacity>(spec.config.sizing)) return;
  reject(
      fmt::format("{} captures calls into a CUDA graph, which needs static shapes: give --sizing capacity and "
                  "--capacity-rows ROWS; the sizing is exact",
                  option));
}

void check_memory(std::int64_t needed_bytes) {
  const AvailableMemory available = available_memory();
  if (available.bytes < 0 || needed_bytes <= available.bytes) return;
  throw Error(ErrorCode::kOutOfMemory,
              fmt::format("this run needs about {}, and {} of the {} of {} are available; take fewer --tokens, --ranks "
                          "or --capacity-rows, or a smaller --hidden",
                          format_bytes(needed_bytes), format_bytes(available.bytes),
                          format_bytes(available.limit_bytes), available.owner()));
}

}  // namespace

Device device_of(const BenchOptions& options) noexcept {
  return options.device == to_string(Device::kCuda) ? Device::kCuda : Device::kHost;
}

std::vector<const DispatcherInfo*> dispatchers_of(Device device) {
  if (device == Device::kCuda && !cuda_support().compiled) throw_no_gpu();
  std::vector<const DispatcherInfo*> found;
  for (const DispatcherInfo* info : dispatchers()) {
    if (info->device() == device) found.push_back(info);
  }
  return found;
}

void require_device(const BenchPlan& plan) {
  if (plan.spec.device == Device::kCuda && cuda_support().num_devices == 0) throw_no_gpu();
  if (plan.profile) check_profile(*plan.profile, profile_use(plan));
}

ProfileUse profile_use(const BenchPlan& plan) {
  return {.config = plan.spec.config, .num_ranks = plan.num_ranks, .group = plan.group, .device = plan.spec.device};
}

BenchPlan make_bench_plan(const BenchOptions& options, int num_ranks, GroupKind group) {
  BenchPlan plan;
  plan.num_ranks = num_ranks;
  plan.group = group;
  plan.spec.seed = options.seed;
  plan.spec.num_iterations = options.num_iterations;
  plan.spec.num_warmups = options.num_warmups;
  plan.spec.stage_combine = options.stage_combine;
  plan.spec.num_chained_pairs = options.num_chained_pairs;
  plan.spec.num_replays = options.num_replays;
  plan.spec.num_host_calls = options.num_host_calls;
  plan.spec.num_in_flight = options.concurrency;
  plan.spec.compute_beside = options.gemm;
  choose_device(options, num_ranks, plan.spec);
  adopt_profile(options, plan);
  plan.routing = RoutingSpec::parse(options.routing);
  plan.trace_layer = options.trace_layer;
  if (options.trace_layer >= 0 && plan.routing.kind != RoutingKind::kTrace) {
    reject("--layer chooses a layer of a trace; --routing is " + options.routing);
  }
  plan.tokens_per_rank = tokens_per_rank(options, num_ranks);
  RoutingRequest request{.num_ranks = num_ranks, .seed = options.seed, .trace_layer = options.trace_layer};
  choose_shape(options, plan, request);
  DispatcherConfig& config = plan.spec.config;
  choose_layout(options, config);
  if (!config.order) config.order = default_order(plan);
  plan.spec.chain_in_graph = options.chain_in_graph;
  check_chain_in_graph(plan.spec);
  if (!options.compares) check_capture(plan.spec);
  const CapacityOptions capacity = choose_capacity(options);
  config.max_tokens = *std::max_element(plan.tokens_per_rank.begin(), plan.tokens_per_rank.end());

  const BenchMemoryRequest memory{
      .tokens_per_rank = plan.tokens_per_rank, .group = group, .verify = !options.no_verify};
  check_memory(estimate_table_bytes(plan.spec, memory));
  if (plan.routing.kind != RoutingKind::kTrace) {
    request.num_experts = config.num_experts;
    request.top_k = config.top_k;
  }
  plan.tables = make_tables(plan, request);
  adopt_shape(options, plan.tables.front(), config);
  plan.model = model_name(options, config);
  drop_beyond_capacity(capacity, plan);
  plan.placement = options.placement;
  if (!plan.placement.empty()) config.placement = read_placement(plan.placement, config.num_experts, num_ranks);
  plan.resolved = resolve_config(config, num_ranks, plan.spec.domain_size);
  plan.masked = masked_ranks(options, num_ranks);
  if (options.compares) {
    choose_contenders(plan);
    plan.spec.dispatchers.clear();
  } else {
    check_capabilities(plan);
  }
  check_memory(estimate_bench_bytes(plan.spec, plan.tables, memory));
  return plan;
}

void add_expectation(const BenchOptions& options, BenchPlan& plan) {
  if (options.no_verify) return;
  plan.spec.expectation =
      std::make_shared<const Expectation>(plan.resolved, plan.tables, reference::RoutingStep{.masked = plan.masked});
}

}  // namespace epistle::cli
