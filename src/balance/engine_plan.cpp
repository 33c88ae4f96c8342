#include "balance/engine_plan.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include <fmt/format.h>

#include "balance/copy_list.hpp"
#include "balance/fresh_plan.hpp"
#include "balance/planner.hpp"
#include "core/reject.hpp"

namespace epistle::balance {
namespace {

class EnginePlanner {
 public:
  explicit EnginePlanner(const EngineRequest& request)
      : request_(&request),
        cluster_(Cluster::even(request.shape.num_ranks, request.shape.num_slots, request.shape.num_nodes)),
        loads_(mix_windows({sum_of(request.windows)}, Objective::kTokens)),
        num_experts_(static_cast<std::int32_t>(loads_.size())) {
    cluster_.check(num_experts_);
    mean_ =
        static_cast<double>(std::accumulate(loads_.begin(), loads_.end(), std::int64_t{0})) / cluster_.num_holders();
    if (!request.current) return;
    now_ = table_of(*request.current);
    now_->check(num_experts_, cluster_);
  }

  [[nodiscard]] EnginePlan run() {
    if (now_) offer(now_->expert);
    if (eplb_obstacle(num_experts_, request_->shape) == nullptr) {
      offer(keep_places(rebalance_experts(std::vector<double>(loads_.begin(), loads_.end()), request_->shape)));
    }
    offer_own();
    const auto best = std::max_element(plans_.begin(), plans_.end(), [](const EnginePlan& a, const EnginePlan& b) {
      return a.balancedness < b.balancedness;
    });
    const double enough = now_ ? best->balancedness - request_->hysteresis : best->balancedness;
    const EnginePlan* chosen = &*best;
    for (const EnginePlan& plan : plans_) {
      if (plan.balancedness >= enough && plan.num_copies < chosen->num_copies) chosen = &plan;
    }
    return *chosen;
  }

 private:
  [[nodiscard]] static std::vector<double> sum_of(const std::vector<std::vector<double>>& windows) {
    if (windows.empty() || windows.front().empty()) reject("no loads, expected those of one expert at least");
    std::vector<double> sums(windows.front().size(), 0.0);
    for (const std::vector<double>& window : windows) {
      if (window.size() != sums.size()) {
        reject(fmt::format("a window of {} experts, expected {} as in the first", window.size(), sums.size()));
      }
      for (std::size_t expert = 0; expert < sums.size(); ++expert) sums[expert] += window[expert];
    }
    // Before anything was routed all experts are alike.
    if (std::all_of(sums.begin(), sums.end(), [](double sum) { return sum == 0.0; })) sums.assign(sums.size(), 1.0);
    return sums;
  }

  [[nodiscard]] SlotTable table_of(std::vector<std::int32_t> experts) const {
    SlotTable table = SlotTable::empty(cluster_.slots_of_rank);
    if (experts.size() != table.expert.size()) {
      reject(fmt::format("the current placement has {} slots, expected {}", experts.size(), table.expert.size()));
    }
    table.expert = std::move(experts);
    return table;
  }

  [[nodiscard]] PlanRequest plan_request(Method method) const {
    PlanRequest request;
    request.windows = {std::vector<double>(loads_.begin(), loads_.end())};
    request.cluster = cluster_;
    request.method = method;
    request.current = now_;
    return request;
  }

  /// With groups and nodes: experts of a group stay together. Otherwise ranks are alike.
  [[nodiscard]] bool keeps_groups() const {
    const EplbShape& shape = request_->shape;
    return shape.num_nodes > 1 && shape.num_groups > 1 && shape.num_groups % shape.num_nodes == 0 &&
           num_experts_ % shape.num_groups == 0;
  }

  void offer_own() {
    PlanRequest fresh = plan_request(Method::kFresh);
    if (keeps_groups()) {
      fresh.num_groups = request_->shape.num_groups;
    } else {
      fresh.split = Split::kEven;
    }
    // Without a current placement in the request the plan is not held back by it; ranks are exchanged below.
    fresh.current = std::nullopt;
    offer(keep_places(filled(plan_placement(fresh).placement)));
    if (!now_ || keeps_groups() || has_doubles(*now_)) return;
    for (const double target : {0.98, 0.995}) {
      PlanRequest few = plan_request(Method::kIncremental);
      few.target = target;
      offer(filled(plan_placement(few).placement));
    }
  }

  [[nodiscard]] bool has_doubles(const SlotTable& table) const {
    for (std::int32_t rank = 0; rank < table.num_ranks(); ++rank) {
      std::vector<std::int32_t> held(table.experts_of(rank).begin(), table.experts_of(rank).end());
      std::sort(held.begin(), held.end());
      if (std::adjacent_find(held.begin(), held.end()) != held.end()) return true;
    }
    return false;
  }

  /// Gives every empty slot the expert with the most load per replica, one that the rank lacks where there is one.
  [[nodiscard]] std::vector<std::int32_t> filled(SlotTable table) const {
    std::vector<std::int32_t> counts = table.replica_counts(num_experts_);
    const std::vector<std::int32_t> rank_of = table.rank_of_slot();
    for (std::size_t slot = 0; slot < table.expert.size(); ++slot) {
      if (table.expert[slot] != kEmptySlot) continue;
      const auto held = table.experts_of(rank_of[slot]);
      const auto worth = [&](std::int32_t expert) {
        const bool is_new = std::find(held.begin(), held.end(), expert) == held.end();
        const auto e = static_cast<std::size_t>(expert);
        return std::pair(is_new, static_cast<double>(loads_[e]) / counts[e]);
      };
      std::int32_t best = 0;
      for (std::int32_t expert = 1; expert < num_experts_; ++expert) {
        if (worth(expert) > worth(best)) best = expert;
      }
      table.expert[slot] = best;
      ++counts[static_cast<std::size_t>(best)];
    }
    return std::move(table.expert);
  }

  /// Exchanges ranks, and slots of a rank, so that as much as possible stays where it is.
  [[nodiscard]] std::vector<std::int32_t> keep_places(std::vector<std::int32_t> experts) const {
    if (!now_) return experts;
    SharedPack pack = share_evenly(table_of(std::move(experts)), loads_);
    relabel_ranks(*now_, cluster_, keeps_groups(), pack);
    keep_slots(*now_, pack.table, pack.share);
    return std::move(pack.table.expert);
  }

  void offer(std::vector<std::int32_t> experts) {
    const SharedPack pack = share_evenly(table_of(std::move(experts)), loads_);
    const std::int64_t largest = largest_rank_load(pack);
    EnginePlan plan{.experts = pack.table.expert,
                    .balancedness = largest == 0 ? 1.0 : mean_ / static_cast<double>(largest)};
    if (now_) plan.num_copies = summarize(list_copies(*now_, pack.table, num_experts_, cluster_, 0)).num_copies;
    plans_.push_back(std::move(plan));
  }

  const EngineRequest* request_;
  Cluster cluster_;
  std::vector<std::int64_t> loads_;
  std::int32_t num_experts_;
  double mean_ = 0.0;
  std::optional<SlotTable> now_;
  std::vector<EnginePlan> plans_;
};

}  // namespace

EnginePlan plan_for_engine(const EngineRequest& request) {
  if (request.shape.num_ranks < 1 || request.shape.num_nodes < 1 || request.shape.num_groups < 1) {
    reject(fmt::format("{} ranks, {} nodes and {} groups, expected 1 or more of each", request.shape.num_ranks,
                       request.shape.num_nodes, request.shape.num_groups));
  }
  return EnginePlanner(request).run();
}

}  // namespace epistle::balance
