// Routes tokens over a described cluster, step by step, and says what that moves and takes. Memory is that of one
// rank's tokens, time grows with the number of tokens.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "cost/fit/calibration.hpp"
#include "simulate/closed_forms.hpp"
#include "simulate/mode_times.hpp"
#include "simulate/placement_loop.hpp"
#include "simulate/token_source.hpp"
#include "topology/cluster.hpp"

namespace epistle::simulate {

inline constexpr std::int32_t kMaxSimulatedRanks = 4096;

struct SimulateRequest {
  Cluster cluster;
  TokenRules tokens;
  std::int64_t num_steps = 1;
  double hidden = 0;
  double expert_ffn = 0;
  ExpertType precision = ExpertType::kFp8Block;
  std::int32_t num_sms = 0;                     ///< of exchanges that can choose; 0 = the most of their choices
  std::vector<std::string> dispatchers;         ///< names of exchange modes; empty = all
  std::int32_t num_slots = 0;                   ///< of all ranks together; 0 = one for every expert
  std::optional<balance::SlotTable> placement;  ///< the first one, in place of blocks; says the slots
  /// Policy, limits and habits; cluster and first placement are those of the request.
  LoopRules loop;
};

struct StepResult {
  std::int64_t step = 0;
  std::int64_t num_tokens = 0;
  std::int64_t num_assignments = 0;  ///< (token, expert)
  double distinct_ranks = 0;         ///< per token, on average
  double distinct_domains = 0;
  std::int32_t busiest_rank = 0;   ///< by (token, expert) that arrive
  double busiest_rank_factor = 1;  ///< of it over the mean of all ranks
  std::optional<ClosedForms> closed_forms;
  PlanCopies copies;  ///< of weights, before this step
  std::vector<ModeStep> modes;
};

struct SimulateResult {
  RankGrid grid;
  std::int32_t num_experts = 0;
  std::int32_t top_k = 0;
  std::int32_t num_slots = 0;
  std::vector<StepResult> steps;
  std::vector<RankRows> ranks;   ///< of the last step
  balance::SlotTable placement;  ///< of the last step
};

/// Experts in the order of the slots, from the first again where there are more slots than experts: blocks of them,
/// with further copies behind. Throws kInvalidArgument where that puts an expert twice on a rank.
[[nodiscard]] balance::SlotTable wrapped_placement(std::int32_t num_experts, const balance::Cluster& cluster);

/// `on_progress` (may be empty) is called now and then with tokens done and in all. Policies plan on a step that lies
/// before the first one of the result. Throws kInvalidArgument for requests that contradict themselves.
[[nodiscard]] SimulateResult simulate(const SimulateRequest& request, const Calibration& calibration,
                                      const std::function<void(std::int64_t, std::int64_t)>& on_progress = {});

}  // namespace epistle::simulate
