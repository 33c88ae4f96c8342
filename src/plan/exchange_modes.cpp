#include "plan/exchange_modes.hpp"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>

#include <fmt/format.h>

#include "epistle/dispatcher_info.hpp"
#include "epistle/error.hpp"

#include "cost/exchange_counts.hpp"

namespace epistle {
namespace {

// DeepEP's low-latency buffers and kernels are made for this many tokens at most (its tests and documentation, 2026).
constexpr double kMaxLowLatencyTokens = 1024;

std::vector<ExchangeMode> make_modes() {
  return {
      {"direct", "direct", ExchangeKind::kThroughput, "direct dispatch", "direct combine", true, 0, {8, 16, 32, 64}},
      {"low_latency",
       "low_latency",
       ExchangeKind::kThroughput,
       "epistle_low_latency dispatch",
       "epistle_low_latency combine",
       true,
       0,
       {}},
      {"hybrid",
       "hybrid",
       ExchangeKind::kThroughput,
       "epistle_hybrid dispatch",
       "epistle_hybrid combine",
       false,
       0,
       {16, 32}},
      {"deepep",
       "",
       ExchangeKind::kThroughput,
       "throughput dispatch",
       "throughput combine",
       false,
       0,
       {8, 16, 20, 24, 32}},
      {"deepep_low_latency",
       "",
       ExchangeKind::kLowLatency,
       "low_latency dispatch",
       "low_latency combine",
       false,
       kMaxLowLatencyTokens,
       {}},
      {"hybrid_ep", "", ExchangeKind::kThroughput, "hybrid dispatch", "hybrid combine", false, 0, {16, 32}},
      {"one_sided", "", ExchangeKind::kOneSided, "one_sided dispatch", "one_sided combine", true, 0, {}},
      {"nccl_alltoall", "", ExchangeKind::kAllToAll, "alltoall", "alltoall", false, 0, {}},
      {"nccl_gather", "", ExchangeKind::kGather, "all_gather", "reduce_scatter", false, 0, {}},
      {"fused_bound", "", ExchangeKind::kFused, "one_sided dispatch", "one_sided combine", true, 0, {}},
  };
}

ExchangeBuffers own_buffers(const ExchangeMode& mode, const PlanRequest& request, double num_ranks, double tokens,
                            double num_redundant) {
  DispatcherConfig config;
  config.hidden = static_cast<std::int64_t>(request.model.routed_hidden);
  config.num_experts = request.model.num_experts + static_cast<std::int32_t>(num_redundant);
  config.top_k = request.model.top_k;
  config.max_tokens = std::max<std::int64_t>(1, static_cast<std::int64_t>(std::ceil(tokens)));
  if (request.precision != ExpertType::kBf16) config.wire = Fp8Blocks{};
  config.sizing = Capacity{.rows_per_rank = config.max_tokens * static_cast<std::int64_t>(num_ranks)};
  ExchangeBuffers buffers;
  buffers.source = "the dispatcher's own buffer plan";
  const DispatcherInfo& info = find_dispatcher(mode.own_name, is_host(request.cluster) ? Device::kHost : Device::kCuda);
  const int ranks = static_cast<int>(num_ranks);
  const int domain = std::min(ranks, request.cluster.gpus_per_domain());
  try {
    if (auto reason = info.cannot_serve(config, ranks, domain)) {
      // What this build lacks does not matter for a plan.
      if (*reason != info.capabilities().missing) buffers.refusal = std::move(reason);
    }
    const MemoryPlan plan = info.memory(config, ranks, domain);
    buffers.bytes =
        static_cast<double>(plan.largest_bytes(MemoryKind::kShared) + plan.largest_bytes(MemoryKind::kPrivate));
  } catch (const Error& error) {
    buffers.refusal = std::string(error.message());
  }
  return buffers;
}

}  // namespace

std::span<const ExchangeMode> exchange_modes() {
  static const std::vector<ExchangeMode> modes = make_modes();
  return modes;
}

const ExchangeMode& find_exchange_mode(std::string_view name) {
  std::string names;
  for (const ExchangeMode& mode : exchange_modes()) {
    if (mode.name == name) return mode;
    names += (names.empty() ? "" : ", ") + std::string(mode.name);
  }
  throw Error(ErrorCode::kNotFound, fmt::format("there is no dispatcher '{}'; a plan knows {}", name, names));
}

std::optional<std::string> cannot_run(const ExchangeMode& mode, const Cluster& cluster) {
  const bool is_collective = mode.kind == ExchangeKind::kAllToAll || mode.kind == ExchangeKind::kGather;
  if (is_host(cluster)) {
    if (mode.own_name.empty()) return fmt::format("{} needs GPUs", mode.name);
    return std::nullopt;
  }
  // Collectives are RCCL's there. As epistle select has it.
  if (cluster.gpu_architecture.starts_with("gfx") && !is_collective) {
    return fmt::format("{} is made for NVIDIA GPUs, and these are {}", mode.name, cluster.gpu_architecture);
  }
  if (cluster.gpu_architecture == "sm_80" && mode.kind == ExchangeKind::kLowLatency) {
    return fmt::format("{} needs sm_90 or later, and these GPUs are sm_80", mode.name);
  }
  return std::nullopt;
}

ExchangeBuffers exchange_buffers(const ExchangeMode& mode, const PlanRequest& request, double num_ranks, double tokens,
                                 double num_redundant) {
  if (num_ranks <= 1) return {.bytes = 0, .source = "one rank needs none", .refusal = {}};
  if (!mode.own_name.empty()) return own_buffers(mode, request, num_ranks, tokens, num_redundant);
  const PlanModel& model = request.model;
  const bool collective = mode.kind == ExchangeKind::kAllToAll || mode.kind == ExchangeKind::kGather;
  const double num_slots = model.num_experts + num_redundant;
  std::optional<std::string> uneven;
  if (!collective && std::fmod(num_slots, num_ranks) != 0.0) {
    uneven = fmt::format("{} needs equally many experts on every rank: {} do not share {} evenly; add copies of {}",
                         mode.name, num_ranks, num_slots, num_ranks - std::fmod(num_slots, num_ranks));
  }
  const double hidden = model.routed_hidden;
  const double bf16_row = 2 * hidden;
  const double fp8_row = hidden + 4 * hidden / 128;
  const double distinct =
      expected_distinct_groups(model.num_experts, model.top_k, std::min<double>(num_ranks, model.num_experts));
  switch (mode.kind) {
    case ExchangeKind::kLowLatency:
      // Independent of the ranks: slots for every expert and token, twice for each direction.
      return {.bytes = 4 * (model.num_experts + num_redundant) * tokens * (bf16_row + 4 * hidden / 128),
              .source = "DeepEP's buffer formula, 2026-03",
              .refusal = uneven};
    case ExchangeKind::kThroughput:
      return {.bytes = 2 * tokens * num_ranks * fp8_row + tokens * distinct * bf16_row,
              .source = "rows of all ranks at worst, and their outputs",
              .refusal = uneven};
    case ExchangeKind::kOneSided:
    case ExchangeKind::kFused:
      return {.bytes = tokens * num_ranks * (fp8_row + bf16_row),
              .source = "a slot for every token of every rank, both ways",
              .refusal = uneven};
    case ExchangeKind::kAllToAll:
      return {
          .bytes = 3 * tokens * model.top_k * bf16_row, .source = "permuted rows, sent and received", .refusal = {}};
    case ExchangeKind::kGather:
      return {
          .bytes = 2 * tokens * num_ranks * bf16_row, .source = "all tokens of all ranks, in and out", .refusal = {}};
  }
  return {};
}

}  // namespace epistle
