// Loads of late, and what Prometheus is told of them.
#include "balance/load_window.hpp"

#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "balance/counter_feed.hpp"
#include "balance/metrics.hpp"
#include "bindings.hpp"

namespace epistle::python {
namespace {

using balance::CounterFeed;
using balance::LayerMetrics;
using balance::LoadSnapshot;
using balance::LoadWindow;
using balance::WindowKind;
using balance::WorkPhase;
using Counts = std::vector<std::int64_t>;

template <typename Enum>
struct NamedValue {
  const char* name;
  Enum value;
};

template <typename Enum, std::size_t kNum>
Enum value_named(const char* what, const std::string& name, const NamedValue<Enum> (&values)[kNum]) {
  std::string names;
  for (const NamedValue<Enum>& value : values) {
    if (name == value.name) return value.value;
    names.append(names.empty() ? "" : ", ").append(value.name);
  }
  throw Error(ErrorCode::kInvalidArgument,
              std::string(what).append(" is '").append(name).append("'; it is one of ").append(names));
}

WorkPhase phase_named(const std::string& name) {
  return value_named<WorkPhase>("phase", name, {{"prefill", WorkPhase::kPrefill}, {"decode", WorkPhase::kDecode}});
}

std::chrono::milliseconds to_milliseconds(double seconds) {
  return std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1000.0));
}

/// A feed needs its window.
struct PyCounterFeed {
  nb::object window;
  CounterFeed feed;
};

template <typename Value>
std::vector<std::vector<Value>> by_layer(const LoadSnapshot& snapshot, const std::vector<Value>& values) {
  std::vector<std::vector<Value>> layers;
  for (auto first = values.begin(); first != values.end(); first += snapshot.num_experts) {
    layers.emplace_back(first, first + snapshot.num_experts);
  }
  return layers;
}

/// Of all ranks, added up.
LoadSnapshot gather_snapshot(const LoadSnapshot& own, Group& group) {
  const std::size_t load_bytes = own.loads.size() * sizeof(double);
  const std::size_t bytes = load_bytes + own.tokens_total.size() * sizeof(std::int64_t);
  std::string text(bytes, '\0');
  std::memcpy(text.data(), own.loads.data(), load_bytes);
  std::memcpy(text.data() + load_bytes, own.tokens_total.data(), bytes - load_bytes);
  std::string texts(bytes * static_cast<std::size_t>(group.size()), '\0');
  {
    const nb::gil_scoped_release release;
    group.all_gather(text.data(), bytes, texts.data());
  }
  LoadSnapshot sum = own;
  for (int rank = 0; rank < group.size(); ++rank) {
    if (rank == group.rank()) continue;
    LoadSnapshot other = own;
    const char* const first = texts.data() + static_cast<std::size_t>(rank) * bytes;
    std::memcpy(other.loads.data(), first, load_bytes);
    std::memcpy(other.tokens_total.data(), first + load_bytes, bytes - load_bytes);
    sum.merge(other);
  }
  return sum;
}

std::string snapshot_metrics(const LoadSnapshot& snapshot, const std::vector<double>& balancedness,
                             const std::vector<std::vector<std::int32_t>>& num_replicas, const Counts& num_moves) {
  std::vector<LayerMetrics> layers(balancedness.size());
  for (const std::size_t size : {num_replicas.size(), num_moves.size()}) {
    if (size == 0 || size == layers.size()) continue;
    throw Error(ErrorCode::kShapeMismatch, "balancedness of " + std::to_string(layers.size()) +
                                               " layers, but replicas or moves of " + std::to_string(size));
  }
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    layers[layer].balancedness = balancedness[layer];
    if (!num_replicas.empty()) layers[layer].num_replicas = num_replicas[layer];
    if (!num_moves.empty()) layers[layer].num_moves = num_moves[layer];
  }
  return balance::metrics_text(snapshot, layers);
}

void bind_snapshot(nb::module_& module) {
  nb::class_<LoadSnapshot>(module, "LoadSnapshot", "Loads of a window at one moment; those of several ranks add up.")
      .def_ro("num_layers", &LoadSnapshot::num_layers)
      .def_ro("num_experts", &LoadSnapshot::num_experts)
      .def_prop_ro(
          "loads", [](const LoadSnapshot& self) { return by_layer(self, self.loads); },
          "[layers][experts]: tokens of the window.")
      .def_prop_ro(
          "tokens_total", [](const LoadSnapshot& self) { return by_layer(self, self.tokens_total); },
          "[layers][experts]: tokens since the beginning.")
      .def("merge", &LoadSnapshot::merge, nb::arg("other"), "Adds another rank's.")
      .def("gather", &gather_snapshot, nb::arg("group"),
           "Collective: the sum of the snapshots of all ranks, the same on each.")
      .def("metrics_text", &snapshot_metrics, nb::kw_only(), nb::arg("balancedness") = std::vector<double>{},
           nb::arg("num_replicas") = std::vector<std::vector<std::int32_t>>{}, nb::arg("num_moves") = Counts{},
           "Text for Prometheus: epistle_expert_tokens_total, and with one value per layer epistle_balancedness, "
           "epistle_expert_replicas ([layers][experts]) and epistle_expert_moves_total.");
}

}  // namespace

void bind_load_window(nb::module_& module) {
  bind_snapshot(module);
  nb::class_<LoadWindow>(
      module, "LoadWindow",
      "Tokens of every expert of late, per layer, prefill and decode apart: what plans are made from. "
      "Any thread may call it.")
      .def(
          "__init__",
          [](LoadWindow* self, std::int32_t num_experts, std::int32_t num_layers, const std::string& kind, double span,
             std::int64_t span_steps, std::int32_t num_buckets, double half_life) {
            new (self) LoadWindow(
                {.num_layers = num_layers,
                 .num_experts = num_experts,
                 .kind = value_named<WindowKind>(
                     "kind", kind,
                     {{"time", WindowKind::kTime}, {"steps", WindowKind::kSteps}, {"decayed", WindowKind::kDecayed}}),
                 .span = to_milliseconds(span),
                 .span_steps = span_steps,
                 .num_buckets = num_buckets,
                 .half_life = to_milliseconds(half_life)});
          },
          nb::arg("num_experts"), nb::kw_only(), nb::arg("num_layers") = 1, nb::arg("kind") = "time",
          nb::arg("span") = 300.0, nb::arg("span_steps") = 1000, nb::arg("num_buckets") = 30,
          nb::arg("half_life") = 120.0,
          "``kind``: time, the last ``span`` seconds; steps, the last ``span_steps``; decayed, all there ever was, by "
          "half after every ``half_life`` seconds. A window of time or steps is kept in ``num_buckets``.")
      .def(
          "add",
          [](LoadWindow& self, const Counts& tokens, std::int32_t layer, const std::string& phase) {
            self.add(layer, phase_named(phase), tokens);
          },
          nb::arg("tokens"), nb::kw_only(), nb::arg("layer") = 0, nb::arg("phase") = "prefill",
          nb::sig("def add(self, tokens: collections.abc.Sequence[int], *, layer: int = 0, phase: str = 'prefill') -> "
                  "None"),
          "Counts tokens, [num_experts].")
      .def(
          "end_step", [](LoadWindow& self, const std::string& phase) { self.end_step(phase_named(phase)); },
          nb::kw_only(), nb::arg("phase") = "prefill",
          "For a window of steps: what is added from now on is of the next.")
      .def(
          "snapshot",
          [](const LoadWindow& self, const std::string& phase) { return self.snapshot(phase_named(phase)); },
          nb::kw_only(), nb::arg("phase") = "prefill")
      .def(
          "samples",
          [](const LoadWindow& self, std::int32_t layer, const std::string& phase) {
            return self.samples(layer, phase_named(phase));
          },
          nb::kw_only(), nb::arg("layer") = 0, nb::arg("phase") = "prefill",
          "[buckets][num_experts]: a layer's buckets that have any load, the oldest first, as plan_placement takes "
          "them.");
  nb::class_<PyCounterFeed>(module, "CounterFeed",
                            "Brings what one dispatcher has counted since the last look into a window.")
      .def(
          "__init__",
          [](PyCounterFeed* self, const nb::object& window, std::int32_t layer, const std::string& phase,
             const Counts& counted) {
            new (self) PyCounterFeed{window, {nb::cast<LoadWindow&>(window), layer, phase_named(phase), counted}};
          },
          nb::arg("window"), nb::kw_only(), nb::arg("layer") = 0, nb::arg("phase") = "prefill",
          nb::arg("counted") = Counts{},
          nb::sig("def __init__(self, window: LoadWindow, *, layer: int = 0, phase: str = 'prefill', counted: "
                  "collections.abc.Sequence[int] = []) -> None"),
          "``counted``: what the counts stand at, if they have begun elsewhere.")
      .def(
          "update", [](PyCounterFeed& self, const Counts& counted) { self.feed.update(counted); }, nb::arg("counted"),
          nb::sig("def update(self, counted: collections.abc.Sequence[int]) -> None"),
          "``counted``: Dispatcher.expert_tokens().");
}

}  // namespace epistle::python
