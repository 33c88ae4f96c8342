// The planner of placements: which expert gets how many slots on which ranks, what part of its load each slot takes,
// and which copies of weights lead there from what is now. A pure function: every rank that asks with the same request
// gets the same plan.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "balance/copy_list.hpp"
#include "balance/copy_rules.hpp"
#include "balance/load_units.hpp"
#include "balance/slot_table.hpp"

namespace epistle::balance {

enum class Method : std::int32_t {
  kFresh,        ///< from nothing; ranks keep what they hold where that costs no balance
  kIncremental,  ///< from the current placement, with as few copies as bring it to the target
};

enum class Split : std::int32_t {
  kShared,  ///< every replica has a quota of its own
  kEven,    ///< all replicas of an expert take equal parts, as engines without quotas do
};

struct PlanRequest {
  /// Loads of the experts in windows of time, [num_windows][num_experts], the oldest first. Each counts alike, whatever
  /// its tokens, so that a plan for several kinds of work serves all of them. For activated experts a window is a
  /// batch.
  std::vector<std::vector<double>> windows;
  double half_life = 0.0;  ///< in windows: the older ones, which come first, count less; 0 = all alike
  /// With several windows: placements that are tried, each scored by its mean balancedness over the windows with one
  /// set of quotas. So experts that are hot together come to lie on different ranks. 1 = only the mixture counts.
  std::int32_t num_candidates = 1;
  Cluster cluster;
  /// Experts of a group (contiguous, equal) stay in one domain where the balance allows it, as routers that limit
  /// groups want it. 0 = domains do not matter to the plan.
  std::int32_t num_groups = 0;
  Objective objective = Objective::kTokens;
  Method method = Method::kFresh;
  Split split = Split::kShared;
  /// What ranks hold now. Needed for kIncremental.
  std::optional<SlotTable> current = std::nullopt;

  std::int64_t expert_bytes = 0;
  std::int64_t budget_bytes = kUnlimited;         ///< of copies between ranks, all together
  std::int64_t max_bytes_into_rank = kUnlimited;  ///< limits per link
  std::int64_t max_bytes_across_domains = kUnlimited;

  double target = 0.98;            ///< balancedness at which kIncremental stops
  double min_gain = 0.0;           ///< a plan that gains less balancedness is not worth any copy
  double min_gain_per_copy = 0.0;  ///< and a copy that brings less than this is not made
  std::int32_t max_steps = 1000;   ///< changes that the search may make
  std::int32_t num_trials = 8;     ///< changes that it tries for each
};

struct Plan {
  SlotTable placement;
  std::vector<double> quotas;    ///< [num_slots]; part of the expert's load; those of an expert sum to 1
  std::vector<CopyStep> copies;  ///< in order; empty where there is no current placement
  CopySummary copy_summary;
  double before = 0.0;         ///< balancedness (mean / max per rank) of the current placement with its best quotas
  double after = 0.0;          ///< of this plan
  double bound = 0.0;          ///< no placement in these slots can be better
  double foreign_share = 0.0;  ///< part of the load that is served outside the domain of the expert's group
  bool changed = false;        ///< the placement is another than the current one
  std::string reason;          ///< where it is not, or less was reached than wanted: why
};

/// Throws kInvalidArgument for requests that contradict themselves.
[[nodiscard]] Plan plan_placement(const PlanRequest& request);

/// [num_slots]; the quotas that serve `loads` best in a placement, no more uneven than that takes.
[[nodiscard]] std::vector<double> best_quotas(const SlotTable& table, const std::vector<std::int64_t>& loads);

}  // namespace epistle::balance
