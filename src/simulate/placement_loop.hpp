// A balancing policy in the loop: what it saw of earlier steps decides where experts are in the next one.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "balance/replay.hpp"
#include "balance/slot_choice.hpp"

namespace epistle::simulate {

struct LoopRules {
  balance::Policy policy = balance::Policy::kNone;
  /// Cluster, groups, bytes and limits; windows, method and current placement are those of the loop.
  balance::PlanRequest plan;
  balance::SlotTable start;        ///< the first placement
  std::int64_t replan_every = 1;   ///< steps
  std::int64_t window_steps = 16;  ///< that are remembered, each counting alike
  bool prefers_near = false;       ///< incremental: replicas of a token's own rank, then of its domain
};

/// Copies of weights between ranks that the last plan asked for.
struct PlanCopies {
  std::int64_t num_copies = 0;
  std::int64_t bytes = 0;
  std::int64_t bytes_across_domains = 0;
  double plan_us = 0.0;
};

class PlacementLoop {
 public:
  /// Throws kInvalidArgument where the policy cannot serve the cluster.
  PlacementLoop(const LoopRules& rules, std::int32_t num_experts);

  /// Whether the counts of a step must be known before its tokens are placed.
  [[nodiscard]] bool needs_counts() const noexcept { return rules_.policy == balance::Policy::kPerBatch; }
  /// Who serves the tokens of a step; it points into this loop. `counts` [num_experts]: of the step, where they are
  /// needed.
  [[nodiscard]] balance::SlotChoice begin_step(std::uint64_t step, std::span<const std::int64_t> counts);
  /// What a step has shown. Plans where that is due.
  void end_step(std::span<const std::int64_t> counts);

  [[nodiscard]] const balance::SlotTable& placement() const noexcept { return placement_; }
  [[nodiscard]] const balance::Cluster& cluster() const noexcept { return rules_.plan.cluster; }
  /// Of the plan that led to the current step; zeros where there was none.
  [[nodiscard]] const PlanCopies& copies() const noexcept { return copies_; }
  [[nodiscard]] balance::ReplicaChoice choice() const;

 private:
  void plan();
  void adopt(balance::SlotTable next);

  LoopRules rules_;
  std::int32_t num_experts_;
  balance::SlotTable placement_;
  std::vector<double> quotas_;             // [num_slots]; empty = all alike
  std::vector<std::int64_t> slot_tokens_;  // of the step, for kPerBatch
  std::vector<std::vector<double>> seen_;  // [steps][num_experts], the oldest first
  std::int64_t num_steps_ = 0;
  bool has_plan_ = false;
  PlanCopies copies_;
};

}  // namespace epistle::simulate
