// Weights of experts that move between ranks while dispatch goes on.
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "epistle/migration.hpp"

#include "array.hpp"
#include "bindings.hpp"

namespace epistle::python {
namespace {

using SlotsOfRanks = std::vector<std::vector<std::int32_t>>;

/// The store must not outlive its group: members go in the reverse order.
struct PyWeightStore {
  nb::object group;
  std::int64_t expert_bytes = 0;
  WeightStore store;

  PyWeightStore(nb::object joined, const WeightStoreConfig& config, WeightStore made)
      : group(std::move(joined)), expert_bytes(config.expert_bytes), store(std::move(made)) {}
  ~PyWeightStore() {
    // Its end waits for the thread that copies.
    const nb::gil_scoped_release release;
    const WeightStore ended = std::move(store);
  }
  PyWeightStore(const PyWeightStore&) = delete;
  PyWeightStore& operator=(const PyWeightStore&) = delete;
};

void create_store(PyWeightStore* self, const nb::object& group, const SlotsOfRanks& slot_experts,
                  std::int32_t num_experts, std::int64_t expert_bytes, const std::vector<std::int32_t>& domain_of_rank,
                  std::int32_t spare_slots, std::int64_t chunk_bytes, std::int64_t max_bytes_per_s, bool low_priority,
                  std::int64_t bytes_per_advance) {
  Group& joined = nb::cast<Group&>(group);
  const WeightStoreConfig config{.num_experts = num_experts,
                                 .expert_bytes = expert_bytes,
                                 .slot_experts = slot_experts,
                                 .domain_of_rank = domain_of_rank,
                                 .spare_slots = spare_slots,
                                 .chunk_bytes = chunk_bytes,
                                 .max_bytes_per_s = max_bytes_per_s,
                                 .low_priority = low_priority,
                                 .bytes_per_advance = bytes_per_advance};
  std::optional<WeightStore> made;
  {
    const nb::gil_scoped_release release;
    made.emplace(joined, config);
  }
  new (self) PyWeightStore(group, config, std::move(*made));
}

Array weights_in(const nb::object& self, std::int32_t local_slot) {
  const auto& held = nb::cast<const PyWeightStore&>(self);
  return make_array(held.store.weights(local_slot).data(), "uint8", {.sizes = {held.expert_bytes}}, {}, self);
}

nb::object status_object(const MigrationStatus& status) {
  constexpr const char* kStates[] = {"idle", "copying", "done", "cancelled"};
  return package_attribute("epistle._config", "MigrationStatus")(kStates[static_cast<std::size_t>(status.state)],
                                                                 status.num_rounds, status.rounds_done,
                                                                 status.bytes_into_rank, status.bytes_copied);
}

}  // namespace

void bind_weight_store(nb::module_& module) {
  nb::class_<PyWeightStore>(
      module, "WeightStore",
      "The experts' weights of one layer, in memory that all ranks of a group reach (threads, or processes of one "
      "host), and moved between ranks while dispatch goes on: every rank pulls what it needs into spare places, and "
      "all "
      "switch between the same two steps, or none does, whichever rank ends when. Calls of a rank come from one thread "
      "at a time.")
      .def(
          "__init__", &create_store, nb::arg("group"), nb::arg("slot_experts"), nb::kw_only(), nb::arg("num_experts"),
          nb::arg("expert_bytes"), nb::arg("domain_of_rank") = std::vector<std::int32_t>{}, nb::arg("spare_slots") = 2,
          nb::arg("chunk_bytes") = WeightStoreConfig{}.chunk_bytes, nb::arg("max_bytes_per_s") = 0,
          nb::arg("low_priority") = true, nb::arg("bytes_per_advance") = 0,
          nb::sig("def __init__(self, group: Group, slot_experts: "
                  "collections.abc.Sequence[collections.abc.Sequence[int]], *, num_experts: int, expert_bytes: int, "
                  "domain_of_rank: collections.abc.Sequence[int] = [], spare_slots: int = 2, chunk_bytes: int = "
                  "262144, max_bytes_per_s: int = 0, low_priority: bool = True, bytes_per_advance: int = 0) -> None"),
          "Collective; equal on all ranks. ``slot_experts``: for every rank the expert of each slot, -1 where it holds "
          "none: the placement to begin with. Weights come from the own domain where they can. ``spare_slots`` of "
          "every rank, at least 2, are where weights arrive; more experts than that take more rounds. ``chunk_bytes`` "
          "are copied at a time; ``max_bytes_per_s`` into one rank, 0: no limit. The copying thread runs only where a "
          "core has nothing else to do, unless ``low_priority`` is False; with ``bytes_per_advance`` there is none, "
          "and advance() copies so much.")
      .def_prop_ro(
          "placement", [](const PyWeightStore& self) { return placement_object(self.store.placement()); },
          nb::sig("def placement(self) -> epistle._config.Placement"),
          "The placement in force, for Dispatcher.set_placement: slots that hold nothing are left out.")
      .def("weights", &weights_in, nb::arg("local_slot"), nb::sig("def weights(self, local_slot: int) -> Array"),
           "[expert_bytes] uint8: the weights in a slot of this rank in ``placement``. They stay until a later "
           "placement "
           "no longer has the expert here, and may be written to while no migration runs.")
      .def(
          "begin",
          [](PyWeightStore& self, const SlotsOfRanks& slot_experts) {
            const nb::gil_scoped_release release;
            return self.store.begin(slot_experts);
          },
          nb::arg("slot_experts"),
          nb::sig("def begin(self, slot_experts: collections.abc.Sequence[collections.abc.Sequence[int]]) -> bool"),
          "Collective: begins to move weights, so that slots hold ``slot_experts``, as many slots as now. False where "
          "nothing is to be done.")
      .def(
          "advance",
          [](PyWeightStore& self) {
            const nb::gil_scoped_release release;
            return self.store.advance();
          },
          "Between two steps, at the same places on all ranks: makes the next placement the one in force when all "
          "ranks "
          "have all its weights, and then returns True. Waits for nothing.")
      .def(
          "cancel", [](PyWeightStore& self) { return self.store.cancel(); },
          "Ends the migration unless its round is decided already; False where it is, or none runs. One rank is "
          "enough.")
      .def(
          "settle",
          [](PyWeightStore& self) {
            const nb::gil_scoped_release release;
            self.store.settle();
          },
          "After the group has failed: all survivors that call it have the same placement afterwards, and its weights "
          "on their slots.")
      .def_prop_ro(
          "status", [](const PyWeightStore& self) { return status_object(self.store.status()); },
          nb::sig("def status(self) -> epistle._config.MigrationStatus"))
      .def("__repr__", [](const PyWeightStore& self) {
        return "<epistle.WeightStore of " + std::to_string(self.store.placement().num_experts()) + " experts>";
      });
}

}  // namespace epistle::python
