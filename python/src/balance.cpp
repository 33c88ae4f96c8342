// Placements of experts for engines: arrays in, lists out. epistle/balance.py gives them the engines' signatures.
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "balance/engine_plan.hpp"
#include "bindings.hpp"

namespace epistle::python {
namespace {

using Loads = nb::ndarray<const double, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Current = nb::ndarray<const std::int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using SlotsOfLayers = std::vector<std::vector<std::int32_t>>;

std::vector<double> loads_of(const Loads& loads, std::size_t window, std::size_t layer) {
  const double* const first = loads.data() + (window * loads.shape(1) + layer) * loads.shape(2);
  return {first, first + loads.shape(2)};
}

SlotsOfLayers rebalance_like_eplb(const Loads& loads, const balance::EplbShape& shape) {
  SlotsOfLayers slots;
  for (std::size_t layer = 0; layer < loads.shape(1); ++layer) {
    std::vector<double> sums(loads.shape(2), 0.0);
    for (std::size_t window = 0; window < loads.shape(0); ++window) {
      const std::vector<double> values = loads_of(loads, window, layer);
      for (std::size_t expert = 0; expert < sums.size(); ++expert) sums[expert] += values[expert];
    }
    slots.push_back(balance::rebalance_experts(sums, shape));
  }
  return slots;
}

SlotsOfLayers plan_for_engine(const Loads& loads, const std::optional<Current>& current,
                              const balance::EplbShape& shape, double hysteresis) {
  if (current && current->shape(0) != loads.shape(1)) {
    throw Error(ErrorCode::kShapeMismatch, "the current placement has " + std::to_string(current->shape(0)) +
                                               " layers, expected " + std::to_string(loads.shape(1)) + " as the loads");
  }
  SlotsOfLayers slots;
  for (std::size_t layer = 0; layer < loads.shape(1); ++layer) {
    balance::EngineRequest request{.windows = {}, .shape = shape, .hysteresis = hysteresis};
    for (std::size_t window = 0; window < loads.shape(0); ++window) {
      request.windows.push_back(loads_of(loads, window, layer));
    }
    if (current) {
      const std::int64_t* const first = current->data() + layer * current->shape(1);
      request.current.emplace(first, first + current->shape(1));
    }
    slots.push_back(balance::plan_for_engine(request).experts);
  }
  return slots;
}

}  // namespace

void bind_balance(nb::module_& module) {
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
      "The expert of every slot, [layers][num_slots], for loads [windows, layers, experts].");
}

}  // namespace epistle::python
