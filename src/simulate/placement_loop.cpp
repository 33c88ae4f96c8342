#include "simulate/placement_loop.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <utility>

#include "balance/batch_quotas.hpp"
#include "balance/copy_list.hpp"

namespace epistle::simulate {

using balance::Policy;
using balance::ReplicaChoice;

PlacementLoop::PlacementLoop(const LoopRules& rules, std::int32_t num_experts)
    : rules_(rules), num_experts_(num_experts), placement_(rules.start) {
  rules_.plan.cluster.check(num_experts);
  placement_.check(num_experts, rules_.plan.cluster);
  if (rules_.policy == Policy::kEplb) {
    // Refuses here what it cannot serve, rather than behind the first step.
    (void)balance::plan_eplb(std::vector<double>(static_cast<std::size_t>(num_experts), 1.0), rules_.plan.cluster,
                             rules_.plan.num_groups);
  }
}

ReplicaChoice PlacementLoop::choice() const {
  switch (rules_.policy) {
    case Policy::kNone:
      return ReplicaChoice::kEven;
    case Policy::kEplb:
      return ReplicaChoice::kRoundRobin;
    case Policy::kIncremental:
      return has_plan_ ? ReplicaChoice::kHash : ReplicaChoice::kEven;
    case Policy::kPerBatch:
      return ReplicaChoice::kExact;
  }
  return ReplicaChoice::kEven;
}

balance::SlotChoice PlacementLoop::begin_step(std::uint64_t step, std::span<const std::int64_t> counts) {
  if (needs_counts()) {
    balance::BatchQuotas quotas(placement_, num_experts_);
    quotas.solve(counts);
    slot_tokens_.assign(quotas.quotas().begin(), quotas.quotas().end());
  }
  return {placement_,
          num_experts_,
          rules_.plan.cluster,
          {.choice = choice(),
           .step = step,
           .quotas = quotas_,
           .slot_tokens = slot_tokens_,
           .prefers_near = rules_.prefers_near}};
}

void PlacementLoop::end_step(std::span<const std::int64_t> counts) {
  copies_ = {};
  if (rules_.policy == Policy::kNone) return;
  seen_.emplace_back(counts.begin(), counts.end());
  if (static_cast<std::int64_t>(seen_.size()) > rules_.window_steps) seen_.erase(seen_.begin());
  if (num_steps_++ % rules_.replan_every == 0) plan();
}

void PlacementLoop::plan() {
  const auto start = std::chrono::steady_clock::now();
  balance::SlotTable next;
  if (rules_.policy == Policy::kEplb) {
    std::vector<double> loads(static_cast<std::size_t>(num_experts_), 0.0);
    for (const std::vector<double>& window : seen_) {
      for (std::size_t expert = 0; expert < loads.size(); ++expert) loads[expert] += window[expert];
    }
    next = balance::plan_eplb(loads, rules_.plan.cluster, rules_.plan.num_groups);
  } else {
    balance::PlanRequest request = rules_.plan;
    request.windows = seen_;
    // The first plan may move what it needs; later ones move little.
    request.method = has_plan_ ? balance::Method::kIncremental : balance::Method::kFresh;
    request.current = placement_;
    balance::Plan plan = balance::plan_placement(request);
    quotas_ = std::move(plan.quotas);
    next = std::move(plan.placement);
  }
  has_plan_ = true;
  copies_.plan_us = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
  adopt(std::move(next));
}

void PlacementLoop::adopt(balance::SlotTable next) {
  const balance::CopySummary summary = balance::summarize(
      balance::list_copies(placement_, next, num_experts_, rules_.plan.cluster, rules_.plan.expert_bytes));
  copies_.num_copies = summary.num_copies;
  copies_.bytes = summary.bytes;
  copies_.bytes_across_domains = summary.bytes_across_domains;
  placement_ = std::move(next);
}

}  // namespace epistle::simulate
