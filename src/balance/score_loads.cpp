#include <algorithm>
#include <chrono>
#include <cstddef>
#include <utility>

#include "balance/balancedness.hpp"
#include "balance/batch_quotas.hpp"
#include "balance/eplb.hpp"
#include "balance/fresh_plan.hpp"
#include "balance/replay.hpp"
#include "core/reject.hpp"

namespace epistle::balance {
namespace {

double us_between(std::chrono::steady_clock::time_point start, std::chrono::steady_clock::time_point end) {
  return std::chrono::duration<double, std::micro>(end - start).count();
}

bool has_replicas(const SlotTable& table, std::int32_t num_experts) {
  const std::vector<std::int32_t> counts = table.replica_counts(num_experts);
  return std::any_of(counts.begin(), counts.end(), [](std::int32_t count) { return count > 1; });
}

}  // namespace

SlotTable plan_eplb(const std::vector<double>& loads, const Cluster& cluster, std::int32_t num_groups) {
  const bool is_even = std::all_of(cluster.slots_of_rank.begin(), cluster.slots_of_rank.end(),
                                   [&](std::int32_t slots) { return slots == cluster.slots_of_rank.front(); });
  if (!is_even) reject("EPLB needs equally many slots on every rank; leave it out of --policy, or change --slots");
  SlotTable table = SlotTable::empty(cluster.slots_of_rank);
  table.expert = rebalance_experts(loads, {.num_slots = cluster.num_slots(),
                                           .num_groups = std::max(num_groups, 1),
                                           .num_nodes = num_groups > 0 ? cluster.num_domains() : 1,
                                           .num_ranks = cluster.num_ranks()});
  return table;
}

ReplayResult score_loads(const std::vector<double>& loads, std::int32_t layer, Policy policy,
                         const PlanRequest& request) {
  const auto num_experts = static_cast<std::int32_t>(loads.size());
  request.cluster.check(num_experts);
  ReplayResult result{.policy = policy, .layer = layer};
  const std::vector<std::int64_t> units = mix_windows({loads}, request.objective);
  SharedPack pack;
  pack.table = request.current ? *request.current : SlotTable::trivial(num_experts, request.cluster.slots_of_rank);
  pack.table.check(num_experts, request.cluster);
  result.rank_loads_before = in_parts_of_mean(rank_loads_of(share_evenly(pack.table, units)), request.cluster);
  const auto start = std::chrono::steady_clock::now();
  if (policy == Policy::kIncremental || (policy == Policy::kPerBatch && !request.current)) {
    PlanRequest own = request;
    own.windows = {loads};
    own.method = request.current ? Method::kIncremental : Method::kFresh;
    Plan plan = plan_placement(own);
    result.plan_us = us_between(start, std::chrono::steady_clock::now());
    result.num_copies = plan.copy_summary.num_copies;
    result.bytes = plan.copy_summary.bytes;
    result.bytes_across_domains = plan.copy_summary.bytes_across_domains;
    result.balancedness = plan.after;
    result.bound = plan.bound;
    result.replica_choice = ReplicaChoice::kHash;
    result.reason = std::move(plan.reason);
    result.quotas = std::move(plan.quotas);
    pack = share_best(std::move(plan.placement), units);
  } else if (policy == Policy::kEplb) {
    SlotTable next = plan_eplb(loads, request.cluster, request.num_groups);
    result.plan_us = us_between(start, std::chrono::steady_clock::now());
    if (request.current) {
      const CopySummary copies =
          summarize(list_copies(pack.table, next, num_experts, request.cluster, request.expert_bytes));
      result.num_copies = copies.num_copies;
      result.bytes = copies.bytes;
      result.bytes_across_domains = copies.bytes_across_domains;
    }
    pack.table = std::move(next);
  }
  if (policy == Policy::kNone || policy == Policy::kEplb) {
    pack = share_evenly(std::move(pack.table), units);
    result.balancedness = balancedness_of(rank_loads_of(pack), request.cluster.num_holders());
    result.bound = placement_bound(units, request.cluster);
    const bool is_replicated = has_replicas(pack.table, num_experts);
    if (is_replicated)
      result.replica_choice = policy == Policy::kEplb ? ReplicaChoice::kRoundRobin : ReplicaChoice::kEven;
  }
  if (policy == Policy::kPerBatch) {
    BatchQuotas quotas(pack.table, num_experts);
    const auto solve_start = std::chrono::steady_clock::now();
    quotas.solve(units);
    result.plan_us = us_between(solve_start, std::chrono::steady_clock::now());
    result.balancedness = quotas.balancedness();
    result.bound = result.balancedness;
    result.replica_choice = ReplicaChoice::kExact;
    pack.share.assign(quotas.quotas().begin(), quotas.quotas().end());
    result.quotas = quotas_of(pack, units);
  }
  result.rank_loads = in_parts_of_mean(rank_loads_of(pack), request.cluster);
  result.batch_bounds = {result.bound};
  result.worst = result.balancedness;
  result.batches = {result.balancedness};
  result.placement = std::move(pack.table);
  return result;
}

}  // namespace epistle::balance
