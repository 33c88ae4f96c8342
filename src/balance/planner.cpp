#include "balance/planner.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <utility>

#include <fmt/format.h>

#include "balance/balancedness.hpp"
#include "balance/fresh_plan.hpp"
#include "balance/load_units.hpp"
#include "balance/local_search.hpp"
#include "balance/share_state.hpp"
#include "core/reject.hpp"

namespace epistle::balance {
namespace {

void check_windows(const std::vector<std::vector<double>>& windows) {
  if (windows.empty() || windows.front().empty()) reject("no loads, expected at least one window with one expert");
  for (const std::vector<double>& window : windows) {
    if (window.size() != windows.front().size()) {
      reject(fmt::format("a window has the loads of {} experts, expected {} as in the first", window.size(),
                         windows.front().size()));
    }
    for (const double load : window) {
      if (!std::isfinite(load) || load < 0.0) reject(fmt::format("a load is {}, expected 0 or more", load));
    }
  }
}

void check_request(const PlanRequest& request) {
  check_windows(request.windows);
  const auto num_experts = static_cast<std::int32_t>(request.windows.front().size());
  request.cluster.check(num_experts);
  if (request.current) request.current->check(num_experts, request.cluster);
  if (request.method == Method::kIncremental) {
    if (!request.current) reject("an incremental plan needs the current placement");
    if (request.split == Split::kEven) {
      reject("an incremental plan shares loads by quotas; with an even split plan from nothing");
    }
  }
  if (request.num_groups < 0 || (request.num_groups > 0 && num_experts % request.num_groups != 0)) {
    reject(fmt::format("{} groups of {} experts, expected groups of equally many", request.num_groups, num_experts));
  }
  if (request.expert_bytes < 0 || request.budget_bytes < 0 || request.max_bytes_into_rank < 0 ||
      request.max_bytes_across_domains < 0) {
    reject("bytes of an expert and limits on copies must not be negative");
  }
  if (request.num_candidates < 1 || !(request.half_life >= 0.0)) {
    reject(fmt::format("{} candidates and a half life of {} windows, expected at least 1, and 0 or more",
                       request.num_candidates, request.half_life));
  }
  if (!(request.target > 0.0 && request.target <= 1.0)) {
    reject(fmt::format("the target is a balancedness of {}, expected above 0 and at most 1", request.target));
  }
}

std::int64_t copies_within(std::int64_t bytes, std::int64_t expert_bytes) {
  return bytes == kUnlimited || expert_bytes == 0 ? kUnlimited : bytes / expert_bytes;
}

CopyLimits limits_of(const PlanRequest& request) {
  return {.max_copies = copies_within(request.budget_bytes, request.expert_bytes),
          .max_into_rank = copies_within(request.max_bytes_into_rank, request.expert_bytes),
          .max_across_domains = copies_within(request.max_bytes_across_domains, request.expert_bytes)};
}

/// What all ways to a plan look at.
class Planner {
 public:
  explicit Planner(const PlanRequest& request)
      : request_(&request),
        loads_(mix_windows(request.windows, request.objective, request.half_life)),
        num_experts_(static_cast<std::int32_t>(loads_.size())),
        mean_(static_cast<double>(std::accumulate(loads_.begin(), loads_.end(), std::int64_t{0})) /
              request.cluster.num_holders()) {}

  [[nodiscard]] Plan run() {
    Plan plan;
    if (!request_->current) {
      finish(plan, fresh());
      plan.before = plan.after;
      plan.changed = true;
      return plan;
    }
    const SharedPack now = best_of_current();
    plan.before = balancedness(now);
    const SharedPack next =
        request_->method == Method::kFresh ? fresh_within_limits(now, plan.reason) : incremental(now, plan.reason);
    finish(plan, changes(now, next, plan) ? next : now);
    return plan;
  }

 private:
  [[nodiscard]] double balancedness(const SharedPack& pack) const {
    return balancedness_of(rank_loads_of(pack), request_->cluster.num_holders());
  }

  [[nodiscard]] SharedPack fresh() const {
    const FreshRules rules{.max_steps = request_->max_steps, .num_trials = request_->num_trials};
    const Cluster& cluster = request_->cluster;
    if (request_->split == Split::kEven) return share_evenly(pack_even(loads_, cluster.slots_of_rank), loads_);
    if (keeps_groups()) return plan_by_domain(loads_, cluster, request_->num_groups, rules);
    if (request_->num_candidates > 1 && request_->windows.size() > 1) {
      return plan_for_windows(loads_, request_->windows, cluster.slots_of_rank,
                              {.num_candidates = request_->num_candidates,
                               .half_life = request_->half_life,
                               .counts_tokens = request_->objective == Objective::kTokens},
                              rules);
    }
    if (request_->num_candidates > 1) return plan_thoroughly(loads_, cluster.slots_of_rank, rules);
    return plan_flat(loads_, cluster.slots_of_rank, rules);
  }

  [[nodiscard]] bool keeps_groups() const { return request_->num_groups > 0 && request_->cluster.num_domains() > 1; }

  [[nodiscard]] SharedPack best_of_current() const {
    return request_->split == Split::kEven ? share_evenly(*request_->current, loads_)
                                           : share_best(*request_->current, loads_);
  }

  [[nodiscard]] SharedPack fresh_relabelled() const {
    SharedPack pack = fresh();
    relabel_ranks(*request_->current, request_->cluster, keeps_groups(), pack);
    keep_slots(*request_->current, pack.table, pack.share);
    return pack;
  }

  [[nodiscard]] bool is_within_limits(const SlotTable& table) const {
    CopyCount copies(*request_->current, num_experts_, request_->cluster, limits_of(*request_));
    for (std::int32_t rank = 0; rank < table.num_ranks(); ++rank) {
      for (const std::int32_t expert : table.experts_of(rank)) copies.apply(rank, kEmptySlot, expert);
    }
    return copies.is_allowed();
  }

  [[nodiscard]] SharedPack fresh_within_limits(const SharedPack& now, std::string& reason) const {
    SharedPack pack = fresh_relabelled();
    if (is_within_limits(pack.table)) return pack;
    if (request_->split == Split::kEven) {
      reason = "a plan from nothing needs more copies than the limits allow";
      return now;
    }
    SharedPack next = incremental(now, reason);
    reason = "a plan from nothing needs more copies than the limits allow, so this one is incremental";
    return next;
  }

  [[nodiscard]] SharedPack incremental(const SharedPack& now, std::string& reason) const {
    if (balancedness(now) >= request_->target) {
      reason = fmt::format("quotas alone reach the target of {:.3f}", request_->target);
      return now;
    }
    ShareState state(now.table, num_experts_);
    state.take_shares(loads_, now.share);
    CopyCount copies(now.table, num_experts_, request_->cluster, limits_of(*request_));
    const double min_gain = request_->min_gain_per_copy * mean_;
    const SearchRules rules{.goal = static_cast<std::int64_t>(mean_ / request_->target),
                            .max_steps = request_->max_steps,
                            .num_trials = request_->num_trials,
                            .min_gain_per_copy = std::max<std::int64_t>(static_cast<std::int64_t>(min_gain), 1)};
    LocalSearch(state, &copies, rules).run();
    SharedPack next{.table = state.table(), .share = {state.shares().begin(), state.shares().end()}};
    keep_slots(now.table, next.table, next.share);
    const double reached = balancedness(next);
    // Far from the target by small steps: a plan from nothing may be worth its copies.
    constexpr double kSlack = 0.01;
    if (reached < request_->target - kSlack) {
      SharedPack other = fresh_relabelled();
      if (balancedness(other) > reached + kSlack && is_within_limits(other.table)) return other;
      reason = fmt::format("reached {:.3f} of the target of {:.3f} with what slots and limits allow", reached,
                           request_->target);
    }
    return next;
  }

  /// Never worse than doing nothing, and nothing where it is not worth a copy.
  [[nodiscard]] bool changes(const SharedPack& now, const SharedPack& next, Plan& plan) const {
    if (next.table == now.table) {
      if (plan.reason.empty()) plan.reason = "no change helps";
      return false;
    }
    const double gain = balancedness(next) - plan.before;
    if (gain <= 0.0 || gain < request_->min_gain) {
      plan.reason = fmt::format("the best change found would gain {:.4f} in balancedness, below {:.4f}", gain,
                                request_->min_gain);
      return false;
    }
    plan.changed = true;
    return true;
  }

  void finish(Plan& plan, const SharedPack& pack) const {
    plan.after = balancedness(pack);
    // Where the mean is reached there is nothing to look for.
    constexpr double kNearlyEven = 0.999;
    plan.bound = plan.after >= kNearlyEven ? 1.0 : placement_bound(loads_, request_->cluster);
    plan.placement = pack.table;
    plan.quotas = quotas_of(pack, loads_);
    if (keeps_groups()) plan.foreign_share = foreign_share(pack);
    if (request_->current) {
      plan.copies =
          list_copies(*request_->current, plan.placement, num_experts_, request_->cluster, request_->expert_bytes);
      plan.copy_summary = summarize(plan.copies);
    }
  }

  [[nodiscard]] double foreign_share(const SharedPack& pack) const {
    // A group is at home where most of its load is served.
    const auto num_domains = static_cast<std::size_t>(request_->cluster.num_domains());
    const auto num_groups = static_cast<std::size_t>(request_->num_groups);
    const std::size_t group_size = loads_.size() / num_groups;
    std::vector<std::int64_t> served(num_groups * num_domains, 0);
    const std::vector<std::int32_t> rank_of = pack.table.rank_of_slot();
    std::int64_t total = 0;
    for (std::size_t slot = 0; slot < pack.share.size(); ++slot) {
      if (pack.table.expert[slot] == kEmptySlot) continue;
      const std::size_t group = static_cast<std::size_t>(pack.table.expert[slot]) / group_size;
      const auto domain = static_cast<std::size_t>(request_->cluster.domain_of(rank_of[slot]));
      served[group * num_domains + domain] += pack.share[slot];
      total += pack.share[slot];
    }
    std::int64_t at_home = 0;
    for (std::size_t group = 0; group < num_groups; ++group) {
      const auto first = served.begin() + static_cast<std::ptrdiff_t>(group * num_domains);
      at_home += *std::max_element(first, first + static_cast<std::ptrdiff_t>(num_domains));
    }
    return total == 0 ? 0.0 : 1.0 - static_cast<double>(at_home) / static_cast<double>(total);
  }

  const PlanRequest* request_;
  std::vector<std::int64_t> loads_;
  std::int32_t num_experts_;
  double mean_;
};

}  // namespace

Plan plan_placement(const PlanRequest& request) {
  check_request(request);
  return Planner(request).run();
}

std::vector<double> best_quotas(const SlotTable& table, const std::vector<std::int64_t>& loads) {
  return quotas_of(share_best(table, loads), loads);
}

}  // namespace epistle::balance
