// Replays recorded routing in batches: plans on what was seen, scores on what comes next.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "epistle/routing.hpp"

#include "balance/planner.hpp"
#include "balance/slot_choice.hpp"

namespace epistle::balance {

enum class Policy : std::int32_t {
  kNone,         ///< the placement as it is; what it has of replicas take alike
  kEplb,         ///< the published algorithm; replicas take turns
  kIncremental,  ///< this planner, from plan to plan; replicas by hash with the quotas of the load window
  kPerBatch,     ///< the same placement; quotas from the counts of every batch
};
inline constexpr std::string_view kPolicyNames[] = {"none", "eplb", "incremental", "per-batch"};
[[nodiscard]] std::string_view to_string(Policy policy) noexcept;
/// The policy of a name of kPolicyNames. Throws kInvalidArgument for others.
[[nodiscard]] Policy policy_named(std::string_view name);

enum class PlanOn : std::int32_t {
  kFirstHalf,  ///< one plan on the first half of the tokens; scored on the second
  kWindows,    ///< the first half, and again after every batch on what was seen by then
};

struct ReplayRules {
  /// Cluster, groups, objective, limits and thresholds; its windows, method and current placement are those of the
  /// replay. Without a current placement it starts from the trivial one.
  PlanRequest plan;
  PlanOn plan_on = PlanOn::kFirstHalf;
  std::int64_t batch_tokens = 2048;
  std::int64_t window_tokens = 128;  ///< what is planned on, in windows of about so many tokens
  /// What was seen so long ago counts half; 0 = all alike; -1 = as what was seen tells (forecast.hpp).
  std::int64_t half_life_tokens = -1;
  std::int32_t prefetch_per_rank = 0;  ///< spare slots of every rank for kPerBatch
  bool prefers_near = false;           ///< replicas of a token's own rank, then of its domain, as the quotas allow
  /// The same tokens in layers before this one: kIncremental, when it balances tokens, foretells by what a batch has
  /// brought their experts what it will bring those of this layer (layer_forecast.hpp). Empty: by the past alone.
  std::vector<const RoutingTable*> layers_before;
  Locality locality;
};

struct ReplayResult {
  Policy policy = Policy::kNone;
  std::int32_t layer = 0;
  double balancedness = 0.0;    ///< mean over the batches of mean / max per rank
  double worst = 0.0;           ///< of a batch
  double bound = 0.0;           ///< the same mean with the best shares that the placement allows in every batch
  double near_share = 0.0;      ///< part of the assignments that stay on their rank
  std::int64_t num_copies = 0;  ///< of weights between ranks, from the first placement on
  std::int64_t bytes = 0;
  std::int64_t bytes_across_domains = 0;
  double plan_us = 0.0;  ///< of a plan, or of the quotas of a batch: the mean
  ReplicaChoice replica_choice = ReplicaChoice::kSingle;
  bool is_foretold = false;          ///< quotas went by the layers before, too
  SlotTable placement = {};          ///< the last one
  std::vector<double> quotas = {};   ///< [num_slots]; the last ones; empty where all replicas are alike
  std::vector<double> batches = {};  ///< balancedness of each
  std::vector<double> batch_bounds = {};
  /// [num_ranks]; over all batches, in parts of the mean of the ranks that have slots.
  std::vector<double> rank_loads = {};
  std::vector<double> rank_loads_before = {};  ///< the same batches in the first placement, replicas alike
  std::string reason = {};                     ///< of the last plan, where it says one
};

/// Throws kInvalidArgument where the tokens do not make a batch behind what is planned on, or a policy cannot serve the
/// cluster.
[[nodiscard]] ReplayResult replay(const RoutingTable& table, std::int32_t layer, Policy policy,
                                  const ReplayRules& rules);

/// The same for one vector of loads, which is planned on and scored: from the current placement, or from nothing where
/// there is none (then `none` is the trivial placement, and copies are not counted). `bound` is that of any placement
/// in these slots; for kPerBatch, where the placement stays, that of any quotas.
[[nodiscard]] ReplayResult score_loads(const std::vector<double>& loads, std::int32_t layer, Policy policy,
                                       const PlanRequest& request);

/// EPLB's placement in a cluster. Throws kInvalidArgument where it cannot serve it.
[[nodiscard]] SlotTable plan_eplb(const std::vector<double>& loads, const Cluster& cluster, std::int32_t num_groups);

}  // namespace epistle::balance
