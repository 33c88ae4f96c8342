#include "balance/replay.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <iterator>
#include <numeric>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "balance/balancedness.hpp"
#include "balance/batch_quotas.hpp"
#include "balance/forecast.hpp"
#include "balance/fresh_plan.hpp"
#include "balance/layer_forecast.hpp"
#include "balance/load_units.hpp"
#include "balance/prefetch.hpp"
#include "core/reject.hpp"

namespace epistle::balance {
namespace {

using Counts = std::vector<std::int64_t>;

constexpr std::int64_t kMaxAhead = 1024;  // windows
// More tokens teach a forecast nothing new, and take time.
constexpr std::int64_t kMaxLearnt = 32768;

struct TokenRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

double us_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
}

/// One layer under one policy.
class Replay {
 public:
  Replay(const RoutingTable& table, Policy policy, const ReplayRules& rules)
      : table_(&table),
        policy_(policy),
        rules_(&rules),
        placement_(rules.plan.current ? *rules.plan.current
                                      : SlotTable::trivial(table.num_experts, rules.plan.cluster.slots_of_rank)) {
    rules.plan.cluster.check(table.num_experts);
    placement_.check(table.num_experts, rules.plan.cluster);
    first_placement_ = placement_;
    rank_loads_.assign(static_cast<std::size_t>(rules.plan.cluster.num_ranks()), 0);
    const std::int64_t half = table.num_tokens / 2;
    if (half < 1 || table.num_tokens - half < rules.batch_tokens) {
      reject(fmt::format("the second half of {} tokens is less than a batch of {}; give a smaller --batch",
                         table.num_tokens, rules.batch_tokens));
    }
    see({0, half});
  }

  [[nodiscard]] ReplayResult run() {
    const std::int64_t half = table_->num_tokens / 2;
    plan();
    for (std::int64_t begin = half; begin + rules_->batch_tokens <= table_->num_tokens; begin += rules_->batch_tokens) {
      const TokenRange range{begin, begin + rules_->batch_tokens};
      score(range, static_cast<std::uint64_t>(result_.batches.size()));
      see(range);
      if (rules_->plan_on == PlanOn::kWindows) {
        plan();
      } else if (policy_ == Policy::kIncremental) {
        quotas_ = best_quotas(placement_, mix_windows(seen_, rules_->plan.objective, half_life()));
      }
    }
    const auto num_batches = static_cast<double>(result_.batches.size());
    result_.balancedness = std::accumulate(result_.batches.begin(), result_.batches.end(), 0.0) / num_batches;
    result_.worst = *std::min_element(result_.batches.begin(), result_.batches.end());
    result_.bound = std::accumulate(result_.batch_bounds.begin(), result_.batch_bounds.end(), 0.0) / num_batches;
    result_.rank_loads = in_parts_of_mean(rank_loads_, rules_->plan.cluster);
    result_.rank_loads_before = loads_before();
    result_.near_share = static_cast<double>(num_near_) / static_cast<double>(std::max<std::int64_t>(num_routed_, 1));
    result_.plan_us = num_timed_ == 0 ? 0.0 : timed_us_ / num_timed_;
    result_.policy = policy_;
    result_.replica_choice = choice();
    result_.is_foretold = foretells();
    result_.placement = placement_;
    result_.quotas = quotas_;
    return std::move(result_);
  }

 private:
  [[nodiscard]] std::span<const std::int32_t> ids_of(std::int64_t token) const {
    const auto top_k = static_cast<std::size_t>(table_->top_k);
    return std::span(table_->expert_ids).subspan(static_cast<std::size_t>(token) * top_k, top_k);
  }

  [[nodiscard]] Counts count(const TokenRange& range) const {
    Counts counts(static_cast<std::size_t>(table_->num_experts), 0);
    for (std::int64_t token = range.begin; token < range.end; ++token) {
      for (const std::int32_t expert : ids_of(token)) {
        if (expert >= 0) ++counts[static_cast<std::size_t>(expert)];
      }
    }
    return counts;
  }

  [[nodiscard]] static std::int64_t begin_of(const TokenRange& range, std::int64_t window, std::int64_t num_windows) {
    return range.begin + (range.end - range.begin) * window / num_windows;
  }

  [[nodiscard]] bool foretells() const {
    return policy_ == Policy::kIncremental && !counts_experts() && !rules_->layers_before.empty();
  }

  /// Quotas for a batch of which only the layers before have been seen.
  [[nodiscard]] std::vector<double> foretold_quotas(const TokenRange& range) const {
    const double half = half_life();
    const auto parts_of = [](const auto& counts) {
      const double sum = std::accumulate(counts.begin(), counts.end(), 0.0);
      std::vector<double> parts(counts.begin(), counts.end());
      for (double& part : parts) part = sum > 0.0 ? part / sum : 0.0;
      return parts;
    };
    const auto usual = [&](const std::vector<std::vector<double>>& windows) {
      return parts_of(mix_windows(windows, Objective::kTokens, half));
    };
    const std::vector<double> now = parts_of(count_inputs(rules_->layers_before, range.begin, range.end));
    const std::vector<double> loads = forecast_.foretell(usual(seen_), now, usual(seen_before_));
    return best_quotas(placement_, mix_windows({loads}, Objective::kTokens, 0.0));
  }

  /// Adds tokens to what was seen, in windows of equal size.
  void see(const TokenRange& range) {
    const std::int64_t num_tokens = range.end - range.begin;
    const std::int64_t num_windows = std::max<std::int64_t>(num_tokens / window_tokens(), 1);
    for (std::int64_t window = 0; window < num_windows; ++window) {
      const Counts counts = count({begin_of(range, window, num_windows), begin_of(range, window + 1, num_windows)});
      seen_.emplace_back(counts.begin(), counts.end());
      if (foretells()) {
        seen_before_.push_back(count_inputs(rules_->layers_before, begin_of(range, window, num_windows),
                                            begin_of(range, window + 1, num_windows)));
      }
    }
    seen_end_ = range.end;
  }

  [[nodiscard]] double half_life() const {
    // Half a batch ahead: what comes next matters more than what comes later.
    if (rules_->half_life_tokens < 0) {
      const std::int64_t num_ahead = std::max<std::int64_t>(rules_->batch_tokens / (2 * window_tokens()), 1);
      return choose_half_life(seen_, static_cast<std::int32_t>(std::min<std::int64_t>(num_ahead, kMaxAhead)));
    }
    return static_cast<double>(rules_->half_life_tokens) / static_cast<double>(window_tokens());
  }

  /// What experts are activated depends on the size of a batch.
  [[nodiscard]] std::int64_t window_tokens() const {
    return counts_experts() ? rules_->batch_tokens : rules_->window_tokens;
  }

  [[nodiscard]] ReplicaChoice choice() const {
    const std::vector<std::int32_t> counts = placement_.replica_counts(table_->num_experts);
    if (std::all_of(counts.begin(), counts.end(), [](std::int32_t replicas) { return replicas == 1; }) &&
        policy_ != Policy::kPerBatch) {
      return ReplicaChoice::kSingle;
    }
    switch (policy_) {
      case Policy::kNone:
        return ReplicaChoice::kEven;
      case Policy::kEplb:
        return ReplicaChoice::kRoundRobin;
      case Policy::kIncremental:
        return ReplicaChoice::kHash;
      case Policy::kPerBatch:
        return ReplicaChoice::kExact;
    }
    return ReplicaChoice::kSingle;
  }

  void adopt(SlotTable next) {
    const CopySummary summary =
        summarize(list_copies(placement_, next, table_->num_experts, rules_->plan.cluster, rules_->plan.expert_bytes));
    result_.num_copies += summary.num_copies;
    result_.bytes += summary.bytes;
    result_.bytes_across_domains += summary.bytes_across_domains;
    placement_ = std::move(next);
  }

  void plan() {
    if (policy_ == Policy::kNone) return;
    const auto start = std::chrono::steady_clock::now();
    if (policy_ == Policy::kEplb) {
      std::vector<double> loads(seen_.front().size(), 0.0);
      for (const std::vector<double>& window : seen_) {
        for (std::size_t expert = 0; expert < loads.size(); ++expert) loads[expert] += window[expert];
      }
      SlotTable next = plan_eplb(loads, rules_->plan.cluster, rules_->plan.num_groups);
      add_time(start);
      adopt(std::move(next));
      return;
    }
    PlanRequest request = rules_->plan;
    request.windows = seen_;
    request.half_life = half_life();
    // The first plan may move what it needs; later ones move little.
    request.method = has_plan_ ? Method::kIncremental : Method::kFresh;
    request.current = placement_;
    Plan plan = plan_placement(request);
    if (foretells()) {
      forecast_ =
          LayerForecast(rules_->layers_before, *table_, std::max<std::int64_t>(seen_end_ - kMaxLearnt, 0), seen_end_);
    }
    if (policy_ == Policy::kIncremental) add_time(start);
    has_plan_ = true;
    quotas_ = std::move(plan.quotas);
    result_.reason = plan.reason;
    adopt(std::move(plan.placement));
  }

  void add_time(std::chrono::steady_clock::time_point start) {
    timed_us_ += us_since(start);
    ++num_timed_;
  }

  [[nodiscard]] bool counts_experts() const { return rules_->plan.objective == Objective::kActivatedExperts; }

  [[nodiscard]] double balancedness(std::span<const std::int64_t> rank_loads) const {
    return balancedness_of(rank_loads, rules_->plan.cluster.num_holders());
  }

  void score(const TokenRange& range, std::uint64_t step) {
    const Counts counts = count(range);
    BatchQuotas best(placement_, table_->num_experts);
    const auto start = std::chrono::steady_clock::now();
    if (counts_experts()) {
      best.solve_activated(counts);
    } else {
      best.solve(counts);
    }
    const double solve_us = us_since(start);
    double bound = best.balancedness();
    if (policy_ == Policy::kPerBatch) {
      timed_us_ += solve_us;
      ++num_timed_;
      if (rules_->prefetch_per_rank > 0) bound = prefetch(counts);
      if (rules_->prefetch_per_rank == 0) add_loads(best.rank_loads());
      result_.batches.push_back(bound);
    } else {
      if (foretells()) quotas_ = foretold_quotas(range);
      const Counts loads = choose(range, step);
      add_loads(loads);
      result_.batches.push_back(balancedness(loads));
    }
    result_.batch_bounds.push_back(bound);
    scored_.resize(counts.size(), 0);
    for (std::size_t expert = 0; expert < counts.size(); ++expert) scored_[expert] += counts[expert];
  }

  double prefetch(const Counts& counts) {
    PrefetchPlanner planner(placement_, table_->num_experts, {.max_per_rank = rules_->prefetch_per_rank});
    const auto start = std::chrono::steady_clock::now();
    Counts loads = counts;
    if (counts_experts()) {
      for (std::int64_t& load : loads) load = load > 0 ? 1 : 0;
    }
    planner.solve(loads);
    timed_us_ += us_since(start);
    const auto num_copies = static_cast<std::int64_t>(planner.fetches().size());
    result_.num_copies += num_copies;
    result_.bytes += num_copies * rules_->plan.expert_bytes;
    add_loads(planner.rank_loads());
    return balancedness(planner.rank_loads());
  }

  void add_loads(std::span<const std::int64_t> rank_loads) {
    for (std::size_t rank = 0; rank < rank_loads.size(); ++rank) rank_loads_[rank] += rank_loads[rank];
  }

  /// What the ranks had of the same batches in the first placement, replicas alike.
  [[nodiscard]] std::vector<double> loads_before() const {
    return in_parts_of_mean(rank_loads_of(share_evenly(first_placement_, scored_)), rules_->plan.cluster);
  }

  /// How replicas serve tokens, whether or not there are several of any expert.
  [[nodiscard]] ReplicaChoice choice_of_tokens() const {
    if (policy_ == Policy::kIncremental) return ReplicaChoice::kHash;
    // Whole experts take no turns.
    return policy_ == Policy::kEplb && !counts_experts() ? ReplicaChoice::kRoundRobin : ReplicaChoice::kEven;
  }

  /// Rank loads of a batch with the policy's choice of replicas.
  [[nodiscard]] Counts choose(const TokenRange& range, std::uint64_t step) {
    const Cluster& cluster = rules_->plan.cluster;
    SlotChoice slots(placement_, table_->num_experts, cluster,
                     {.choice = choice_of_tokens(),
                      .step = step,
                      .quotas = quotas_,
                      .prefers_near = rules_->prefers_near,
                      .locality = rules_->locality});
    std::vector<char> is_active(placement_.expert.size(), 0);
    Counts loads(static_cast<std::size_t>(cluster.num_ranks()), 0);
    for (std::int64_t token = range.begin; token < range.end; ++token) {
      // The batch comes from all ranks in equal blocks.
      const std::int64_t position = token - range.begin;
      const auto src_rank = static_cast<std::int32_t>(position * cluster.num_ranks() / (range.end - range.begin));
      for (const std::int32_t expert : ids_of(token)) {
        if (expert < 0) continue;
        // An expert that is needed at all is needed whole: all its tokens of a step go to one replica.
        const ReplicaEntry& replica =
            slots.choose({.expert = expert, .token_position = counts_experts() ? 0 : position, .src_rank = src_rank});
        ++num_routed_;
        num_near_ += replica.rank == src_rank ? 1 : 0;
        char& active = is_active[static_cast<std::size_t>(replica.slot)];
        if (!counts_experts() || active == 0) ++loads[static_cast<std::size_t>(replica.rank)];
        active = 1;
      }
    }
    return loads;
  }

  const RoutingTable* table_;
  Policy policy_;
  const ReplayRules* rules_;
  SlotTable placement_;
  SlotTable first_placement_;
  Counts scored_;                          // [num_experts]; tokens of all batches
  Counts rank_loads_;                      // [num_ranks]; of all batches
  std::vector<double> quotas_;             // [num_slots]
  std::vector<std::vector<double>> seen_;  // in windows, the oldest first
  // The same windows of the layers before, one layer after the other.
  std::vector<std::vector<double>> seen_before_;
  std::int64_t seen_end_ = 0;  // tokens
  LayerForecast forecast_;
  bool has_plan_ = false;
  ReplayResult result_;
  double timed_us_ = 0.0;
  int num_timed_ = 0;
  std::int64_t num_routed_ = 0;
  std::int64_t num_near_ = 0;
};

}  // namespace

std::string_view to_string(Policy policy) noexcept { return kPolicyNames[static_cast<std::size_t>(policy)]; }

Policy policy_named(std::string_view name) {
  const auto* const found = std::find(std::begin(kPolicyNames), std::end(kPolicyNames), name);
  if (found == std::end(kPolicyNames)) {
    reject(fmt::format("the policy is '{}', expected one of {}", name, fmt::join(kPolicyNames, ", ")));
  }
  return static_cast<Policy>(found - std::begin(kPolicyNames));
}

ReplayResult replay(const RoutingTable& table, std::int32_t layer, Policy policy, const ReplayRules& rules) {
  ReplayResult result = Replay(table, policy, rules).run();
  result.layer = layer;
  return result;
}

}  // namespace epistle::balance
