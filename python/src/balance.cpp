// Placements of experts: arrays in, lists out. epistle/balance.py gives them Python's and the engines' signatures.
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "balance/engine_plan.hpp"
#include "balance/planner.hpp"
#include "bindings.hpp"

namespace epistle::python {
namespace {

using Loads = nb::ndarray<const double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Current = nb::ndarray<const std::int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using SlotsOfLayers = std::vector<std::vector<std::int32_t>>;

std::vector<double> loads_of(const Loads& loads, std::size_t layer) {
  const double* const first = loads.data() + layer * loads.shape(1);
  return {first, first + loads.shape(1)};
}

SlotsOfLayers rebalance_like_eplb(const Loads& loads, const balance::EplbShape& shape) {
  SlotsOfLayers slots;
  for (std::size_t layer = 0; layer < loads.shape(0); ++layer) {
    slots.push_back(balance::rebalance_experts(loads_of(loads, layer), shape));
  }
  return slots;
}

SlotsOfLayers plan_for_engine(const Loads& loads, const std::optional<Current>& current,
                              const balance::EplbShape& shape, double hysteresis) {
  if (current && current->shape(0) != loads.shape(0)) {
    throw Error(ErrorCode::kShapeMismatch, "the current placement has " + std::to_string(current->shape(0)) +
                                               " layers, expected " + std::to_string(loads.shape(0)) + " as the loads");
  }
  SlotsOfLayers slots;
  for (std::size_t layer = 0; layer < loads.shape(0); ++layer) {
    balance::EngineRequest request{.windows = {loads_of(loads, layer)}, .shape = shape, .hysteresis = hysteresis};
    if (current) {
      const std::int64_t* const first = current->data() + layer * current->shape(1);
      request.current.emplace(first, first + current->shape(1));
    }
    slots.push_back(balance::plan_for_engine(request).experts);
  }
  return slots;
}

using SlotsByRank = std::vector<std::vector<std::int32_t>>;

template <typename Value>
std::vector<std::vector<Value>> by_rank(const balance::SlotTable& table, const std::vector<Value>& of_slots) {
  std::vector<std::vector<Value>> ranks;
  for (std::size_t rank = 0; rank + 1 < table.begin.size(); ++rank) {
    ranks.emplace_back(of_slots.begin() + table.begin[rank], of_slots.begin() + table.begin[rank + 1]);
  }
  return ranks;
}

balance::SlotTable table_of(const SlotsByRank& slot_experts) {
  balance::SlotTable table{.begin = {0}, .expert = {}};
  for (const std::vector<std::int32_t>& experts : slot_experts) {
    table.expert.insert(table.expert.end(), experts.begin(), experts.end());
    table.begin.push_back(static_cast<std::int32_t>(table.expert.size()));
  }
  return table;
}

nb::object plan_object(const balance::Plan& plan) {
  const nb::object copy_class = package_attribute("epistle.balance", "Copy");
  nb::list copies;
  for (const balance::CopyStep& copy : plan.copies) {
    copies.append(copy_class(copy.expert, nb::make_tuple(copy.source.rank, copy.source.local_slot),
                             nb::make_tuple(copy.destination.rank, copy.destination.local_slot), copy.bytes,
                             std::string(to_string(copy.link))));
  }
  return package_attribute("epistle.balance", "PlacementPlan")(
      by_rank(plan.placement, plan.placement.expert), by_rank(plan.placement, plan.quotas), copies,
      plan.copy_summary.bytes, plan.copy_summary.bytes_across_domains, plan.before, plan.after, plan.bound,
      plan.changed, plan.reason);
}

/// What Python has checked already: the limits are there or not, the objective is one.
struct PlanOptions {
  std::optional<std::int64_t> budget_bytes, max_bytes_into_rank, max_bytes_across_domains;
};

void set_limits(balance::PlanRequest& request, const PlanOptions& options) {
  request.budget_bytes = options.budget_bytes.value_or(balance::kUnlimited);
  request.max_bytes_into_rank = options.max_bytes_into_rank.value_or(balance::kUnlimited);
  request.max_bytes_across_domains = options.max_bytes_across_domains.value_or(balance::kUnlimited);
}

}  // namespace

void bind_balance(nb::module_& module) {
  module.def(
      "plan_placement",
      [](std::vector<std::vector<double>> windows, std::vector<std::int32_t> slots_of_rank,
         std::vector<std::int32_t> domain_of_rank, const std::optional<SlotsByRank>& current, bool from_nothing,
         bool counts_activated, std::int32_t num_groups, double half_life, std::int32_t num_candidates,
         std::int64_t expert_bytes, std::optional<std::int64_t> budget_bytes,
         std::optional<std::int64_t> max_bytes_into_rank, std::optional<std::int64_t> max_bytes_across_domains,
         double target, double min_gain) {
        balance::PlanRequest request;
        request.windows = std::move(windows);
        request.cluster = {.slots_of_rank = std::move(slots_of_rank), .domain_of_rank = std::move(domain_of_rank)};
        if (current) request.current = table_of(*current);
        request.method = from_nothing ? balance::Method::kFresh : balance::Method::kIncremental;
        if (counts_activated) request.objective = balance::Objective::kActivatedExperts;
        request.num_groups = num_groups;
        request.half_life = half_life;
        request.num_candidates = num_candidates;
        request.expert_bytes = expert_bytes;
        set_limits(request, {budget_bytes, max_bytes_into_rank, max_bytes_across_domains});
        request.target = target;
        request.min_gain = min_gain;
        balance::Plan plan;
        {
          const nb::gil_scoped_release release;
          plan = balance::plan_placement(request);
        }
        return plan_object(plan);
      },
      nb::arg("windows"), nb::kw_only(), nb::arg("slots_of_rank"), nb::arg("domain_of_rank"), nb::arg("current").none(),
      nb::arg("from_nothing"), nb::arg("counts_activated"), nb::arg("num_groups"), nb::arg("half_life"),
      nb::arg("num_candidates"), nb::arg("expert_bytes"), nb::arg("budget_bytes").none(),
      nb::arg("max_bytes_into_rank").none(), nb::arg("max_bytes_across_domains").none(), nb::arg("target"),
      nb::arg("min_gain"),
      nb::sig("def plan_placement(windows: list[list[float]], *, slots_of_rank: list[int], domain_of_rank: list[int], "
              "current: list[list[int]] | None, from_nothing: bool, counts_activated: bool, num_groups: int, "
              "half_life: float, num_candidates: int, expert_bytes: int, budget_bytes: int | None, "
              "max_bytes_into_rank: int | None, max_bytes_across_domains: int | None, target: float, min_gain: float) "
              "-> epistle.balance.PlacementPlan"),
      "See epistle.balance.plan_placement.");
  module.def(
      "plan_for_engine",
      [](const Loads& loads, std::int32_t num_slots, std::int32_t num_groups, std::int32_t num_nodes,
         std::int32_t num_ranks, const std::optional<Current>& current, double hysteresis, bool as_eplb) {
        const balance::EplbShape shape{
            .num_slots = num_slots, .num_groups = num_groups, .num_nodes = num_nodes, .num_ranks = num_ranks};
        const nb::gil_scoped_release release;
        return as_eplb ? rebalance_like_eplb(loads, shape) : plan_for_engine(loads, current, shape, hysteresis);
      },
      nb::arg("loads"), nb::kw_only(), nb::arg("num_slots"), nb::arg("num_groups"), nb::arg("num_nodes"),
      nb::arg("num_ranks"), nb::arg("current").none(), nb::arg("hysteresis"), nb::arg("as_eplb"),
      nb::sig("def plan_for_engine(loads: object, *, num_slots: int, num_groups: int, num_nodes: int, num_ranks: int, "
              "current: object | None, hysteresis: float, as_eplb: bool) -> list[list[int]]"),
      "The expert of every slot, [layers][num_slots], for loads [layers, experts].");
}

}  // namespace epistle::python
