// Plans: how a model could be laid out over a cluster, what each takes and what binds it.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cost/fit/calibration.hpp"
#include "plan/exchange_modes.hpp"
#include "plan/plan_request.hpp"

namespace epistle {

/// What a plan decides.
struct PlanChoice {
  std::int32_t num_ranks = 1;          ///< EP
  std::int32_t tensor_ranks = 1;       ///< TP of attention
  std::int32_t num_replicas = 1;       ///< DP: EP groups side by side
  std::int32_t num_redundant = 0;      ///< further copies of hot experts
  const ExchangeMode* mode = nullptr;  ///< null at one rank
  std::int32_t num_sms = 0;            ///< of the exchange; 0 = all
  bool two_batches = false;            ///< exchange of one half behind the GEMMs of the other

  /// "ep8-tp1-direct-16sms": how it is called in --explain.
  [[nodiscard]] std::string name() const;
};

/// What limits a plan.
enum class Binding : std::int32_t { kLatency, kSm, kLink, kNetwork, kWeights, kCompute, kStraggler };
inline constexpr std::size_t kNumBindings = 7;
[[nodiscard]] std::string_view to_string(Binding binding) noexcept;

/// A part of the time of a layer, of one step.
struct PlanTerm {
  std::string_view name;  ///< route, attention, tensor_parallel, dispatch, grouped_gemm, combine, shared_experts
  double us = 0;
  double low_us = 0;
  double high_us = 0;
  std::string_view provenance;                  ///< "measured here", "calibrated", "prior"
  std::string curve;                            ///< that gives it; empty = a closed form with assumed efficiencies
  std::array<double, kNumBindings> parts_us{};  ///< by what they are bound
};

/// Memory of one GPU, in bytes.
struct MemoryLedger {
  double expert_weights = 0;
  double other_weights = 0;
  double kv_cache = 0;
  double exchange_buffers = 0;
  double workspace = 0;
  double reserve = 0;  ///< CUDA, graphs, libraries
  double limit = 0;
  std::string_view buffers_source;

  [[nodiscard]] double total() const noexcept {
    return expert_weights + other_weights + kv_cache + exchange_buffers + workspace + reserve;
  }
};

/// What follows from routing and the number of ranks alone.
struct RoutingCounts {
  double distinct_ranks = 1;    ///< of a token, on average
  double distinct_domains = 1;  ///< likewise
  double busiest_factor = 1;    ///< rows of the busiest rank over those of the average one
};

struct Plan {
  PlanChoice choice;
  std::vector<PlanTerm> terms;  ///< of one layer with experts
  double hidden_us = 0;         ///< of a layer: what two batches hide
  double layer_us = 0;
  double step_us = 0;
  double step_low_us = 0;
  double step_high_us = 0;
  double tokens_per_gpu = 0;  ///< of a step
  double tokens_per_s_per_gpu = 0;
  RoutingCounts counts;  ///< of its ranks, in one layer
  Binding binding = Binding::kLatency;
  MemoryLedger memory;
  std::vector<std::string> refusals;  ///< why it cannot be; empty = feasible
};

/// How many of `num_groups` ranks or domains a token goes to, with experts in contiguous blocks. Copies of experts
/// change nothing of it.
[[nodiscard]] double distinct_groups(const PlanRequest& request, std::int32_t num_groups);
/// Load of the busiest rank over the mean. `inclusion` is that of the request.
[[nodiscard]] double busiest_rank(const PlanRequest& request, std::span<const double> inclusion, std::int32_t num_ranks,
                                  std::int32_t num_redundant);

/// Probability of each expert to be among a token's; empty where all are alike.
[[nodiscard]] std::vector<double> expert_inclusion(const PlanRequest& request);

/// What takes longer to compute than the times of a plan, and is the same for many: a search keeps it.
struct PlanFacts {
  ExchangeBuffers buffers;
  RoutingCounts counts;
};

[[nodiscard]] PlanFacts plan_facts(const PlanRequest& request, const PlanChoice& choice, const RoutingCounts& counts);

[[nodiscard]] Plan evaluate_plan(const PlanRequest& request, const Calibration& calibration, const PlanChoice& choice,
                                 const PlanFacts& facts);

/// Tokens that a rank gives to one call of the exchange.
[[nodiscard]] double tokens_per_call(const PlanRequest& request, const PlanChoice& choice);

/// What a rank keeps of a sequence, in all layers: of its tokens, and of the states of layers without a cache.
[[nodiscard]] double cache_bytes_per_sequence(const PlanModel& model, double context_tokens, std::int32_t tensor_ranks);
[[nodiscard]] double state_bytes_per_sequence(const PlanModel& model);

/// Ledger of a choice.
[[nodiscard]] MemoryLedger memory_ledger(const PlanRequest& request, const PlanChoice& choice, const PlanFacts& facts);

/// Rows of the busiest rank over the average: contiguous blocks of experts; with copies, copies of the hottest experts
/// and the fullest places first.
[[nodiscard]] double planned_busiest_factor(std::span<const double> inclusion, std::int32_t num_ranks,
                                            std::int32_t num_redundant);

}  // namespace epistle
