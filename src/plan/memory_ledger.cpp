#include <algorithm>
#include <cmath>
#include <numeric>

#include "cost/exchange_counts.hpp"
#include "plan/plan.hpp"

namespace epistle {
namespace {

constexpr double kBf16Bytes = 2;
constexpr double kStateBytes = 4;  // engines keep states in fp32

}  // namespace

double tokens_per_call(const PlanRequest& request, const PlanChoice& choice) {
  const double tokens = request.global_tokens > 0 ? request.global_tokens / choice.num_ranks : request.tokens_per_gpu;
  return choice.two_batches ? tokens / 2 : tokens;
}

double cache_bytes_per_sequence(const PlanModel& model, double context_tokens, std::int32_t tensor_ranks) {
  double bytes = 0.0;
  for (const AttentionLayers& layers : model.attention) {
    const double elements = layers.cached_elements(tensor_ranks) + layers.index_elements;
    bytes += layers.num_layers * layers.kept_tokens(context_tokens) * elements * kBf16Bytes;
  }
  return bytes;
}

double state_bytes_per_sequence(const PlanModel& model) {
  double bytes = 0.0;
  for (const AttentionLayers& layers : model.attention)
    bytes += layers.num_layers * layers.state_elements * kStateBytes;
  return bytes;
}

std::vector<double> expert_inclusion(const PlanRequest& request) {
  if (request.popularity.empty()) return {};
  return inclusion_probabilities(request.popularity, request.model.top_k);
}

double distinct_groups(const PlanRequest& request, std::int32_t num_groups) {
  const PlanModel& model = request.model;
  // A skewed router's groups are not known to the popularity of its experts.
  if (!request.popularity.empty()) return expected_distinct_groups(request.popularity, model.top_k, num_groups);
  const GroupLimit limit{.num_groups = model.num_groups, .groups_per_token = model.groups_per_token};
  return expected_distinct_groups(model.num_experts, model.top_k, num_groups, limit);
}

double busiest_rank(const PlanRequest& request, std::span<const double> inclusion, std::int32_t num_ranks,
                    std::int32_t num_redundant) {
  const PlanModel& model = request.model;
  const bool uneven = (model.num_experts + num_redundant) % num_ranks != 0;
  if (!inclusion.empty() || (!uneven && num_redundant == 0)) {
    return planned_busiest_factor(inclusion, num_ranks, num_redundant);
  }
  // Even routing over ranks that do not hold equally many experts, or over some that exist twice.
  const double experts = model.num_experts;
  const std::vector<double> even(static_cast<std::size_t>(model.num_experts), model.top_k / experts);
  return planned_busiest_factor(even, num_ranks, num_redundant);
}

PlanFacts plan_facts(const PlanRequest& request, const PlanChoice& choice, const RoutingCounts& counts) {
  PlanFacts facts;
  facts.buffers.source = "one rank needs none";
  if (choice.mode != nullptr) {
    facts.buffers = exchange_buffers(*choice.mode, request, choice.num_ranks, tokens_per_call(request, choice),
                                     choice.num_redundant);
  }
  facts.counts = counts;
  return facts;
}

MemoryLedger memory_ledger(const PlanRequest& request, const PlanChoice& choice, const PlanFacts& facts) {
  // CUDA's context, graphs, NCCL and the allocator's slack on one GPU: what engines report, 2 to 4 GB.
  constexpr double kReserveBytes = 3e9;
  // Weights, gradients and two moments of Adam in fp32, and the bf16 weights themselves.
  constexpr double kTrainingBytesPerElement = 16;
  const PlanModel& model = request.model;
  const bool training = request.workload == Workload::kTraining;
  const double weight_bytes = training ? kTrainingBytesPerElement : weight_bytes_per_element(request.precision);
  const double tokens = tokens_per_call(request, choice) * (choice.two_batches ? 2 : 1);

  MemoryLedger ledger;
  // Where experts cannot be shared evenly some rank has one more than others.
  const double expert_slots =
      std::ceil(static_cast<double>(model.num_experts + choice.num_redundant) / choice.num_ranks);
  ledger.expert_weights = model.num_moe_layers * expert_slots * model.expert_elements() * weight_bytes;
  const double other_elements =
      model.beside_elements() +
      (model.attention_elements() + model.dense_elements() + model.embedding_elements()) / choice.tensor_ranks;
  // Attention and embeddings stay in bf16 where experts are fp4.
  ledger.other_weights = other_elements * (training ? weight_bytes : std::max(weight_bytes, 1.0));
  if (request.workload != Workload::kTraining) {
    // In decode a token is a sequence with its context; otherwise the tokens are those that are cached.
    const bool decode = request.workload == Workload::kDecode;
    const double sequences = decode ? tokens : std::ceil(tokens / request.context_tokens);
    ledger.kv_cache =
        tokens * cache_bytes_per_sequence(model, decode ? request.context_tokens : 1.0, choice.tensor_ranks) +
        sequences * state_bytes_per_sequence(model);
  } else {
    // Inputs of every layer, kept for the backward pass; the rest is computed again.
    ledger.kv_cache = tokens * model.hidden * kBf16Bytes * model.num_layers;
  }
  ledger.exchange_buffers = facts.buffers.bytes * (choice.two_batches ? 2 : 1);
  ledger.buffers_source = facts.buffers.source;
  const double expert_rows = tokens_per_call(request, choice) * model.top_k * facts.counts.busiest_factor;
  ledger.workspace = expert_rows * kBf16Bytes * (2 * model.routed_hidden + 3 * model.expert_ffn) +
                     tokens * kBf16Bytes * 6 * model.hidden;
  ledger.reserve = kReserveBytes;
  ledger.limit = request.memory_share * request.cluster.hbm_bytes();
  return ledger;
}

double planned_busiest_factor(std::span<const double> inclusion, std::int32_t num_ranks, std::int32_t num_redundant) {
  if (inclusion.empty() || num_ranks <= 1) return 1.0;
  if (num_redundant == 0) return busiest_rank_factor(inclusion, num_ranks);
  std::vector<double> copies(inclusion.size(), 1.0);
  for (std::int32_t extra = 0; extra < num_redundant; ++extra) {
    std::size_t hottest = 0;
    for (std::size_t expert = 1; expert < copies.size(); ++expert) {
      if (inclusion[expert] / copies[expert] > inclusion[hottest] / copies[hottest]) hottest = expert;
    }
    copies[hottest] += 1.0;
  }
  std::vector<double> loads;
  for (std::size_t expert = 0; expert < copies.size(); ++expert) {
    loads.insert(loads.end(), static_cast<std::size_t>(copies[expert]), inclusion[expert] / copies[expert]);
  }
  std::sort(loads.rbegin(), loads.rend());
  const auto ranks = static_cast<std::size_t>(num_ranks);
  const std::size_t slots = (loads.size() + ranks - 1) / ranks;
  std::vector<double> rank_loads(ranks, 0.0);
  std::vector<std::size_t> rank_slots(ranks, 0);
  for (const double load : loads) {
    std::size_t best = ranks;
    for (std::size_t rank = 0; rank < ranks; ++rank) {
      if (rank_slots[rank] < slots && (best == ranks || rank_loads[rank] < rank_loads[best])) best = rank;
    }
    rank_loads[best] += load;
    ++rank_slots[best];
  }
  const double total = std::accumulate(rank_loads.begin(), rank_loads.end(), 0.0);
  return *std::max_element(rank_loads.begin(), rank_loads.end()) * static_cast<double>(ranks) / total;
}

}  // namespace epistle
