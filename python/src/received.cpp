// Handles, leases and calls that are under way, as Python holds them.
#include <vector>

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "array.hpp"
#include "bindings.hpp"

namespace epistle::python {
namespace {

nb::object stats_object(const RoutingStats& stats) {
  return package_attribute("epistle._config", "RoutingStats")(
      stats.num_tokens, stats.sent_rows, stats.sent_remote_rows, stats.received_rows, stats.received_remote_rows,
      stats.sent_remote_assignments, stats.output_rows, stats.padding_rows, stats.dropped_by_this_rank,
      stats.dropped_here, stats.dropped_in_group, stats.lost_by_this_rank);
}

/// What the descriptions of a handle and of a lease have alike. `owner` keeps the memory; None where there is no such
/// array.
struct Description {
  const RowDescription& rows;
  Place place;
  nb::object owner;

  [[nodiscard]] nb::object table(const void* data, const char* dtype, ArrayShape shape) const {
    if (data == nullptr && shape.sizes.front() > 0) return nb::none();
    return nb::cast(make_array(data, dtype, std::move(shape), place, owner));
  }
  [[nodiscard]] bool token_major() const { return rows.expert_begin == nullptr; }
  [[nodiscard]] std::int64_t top_k() const {
    const auto& dispatcher = nb::cast<const PyDispatcher&>(owner_dispatcher());
    return dispatcher.dispatcher.config().top_k;
  }
  [[nodiscard]] nb::object owner_dispatcher() const {
    return nb::isinstance<PyHandle>(owner) ? nb::cast<const PyHandle&>(owner).dispatcher
                                           : nb::cast<const PyReceived&>(owner).dispatcher;
  }
  [[nodiscard]] ArrayShape per_row(bool with_top_k) const {
    if (with_top_k) return {.sizes = {rows.num_rows, top_k()}};
    return {.sizes = {rows.num_rows}};
  }
};

template <typename Object>
Description describe(const nb::object& self);

template <>
Description describe<PyHandle>(const nb::object& self) {
  const auto& handle = nb::cast<const PyHandle&>(self);
  return {handle.handle.description(), place_of(handle.dispatcher), self};
}

template <>
Description describe<PyReceived>(const nb::object& self) {
  const auto& received = nb::cast<const PyReceived&>(self);
  return {received.received.description(), place_of(received.dispatcher), self};
}

/// The properties that tell what rows are.
template <typename Object>
void bind_description(nb::class_<Object>& object) {
  const auto add = [&](const char* name, auto get, const char* text) {
    object.def_prop_ro(
        name, [get](const nb::object& self) { return get(describe<Object>(self)); },
        nb::sig(("def " + std::string(name) + "(self) -> Array").c_str()), text);
  };
  const auto add_optional = [&](const char* name, auto get, const char* text) {
    object.def_prop_ro(
        name, [get](const nb::object& self) { return get(describe<Object>(self)); },
        nb::sig(("def " + std::string(name) + "(self) -> Array | None").c_str()), text);
  };
  const auto add_number = [&](const char* name, auto get, const char* text) {
    object.def_prop_ro(
        name, [get](const nb::object& self) -> std::int64_t { return get(describe<Object>(self).rows); },
        nb::sig(("def " + std::string(name) + "(self) -> int").c_str()), text);
  };
  add_number(
      "num_rows", [](const RowDescription& rows) { return rows.num_rows; },
      "Rows of the layout, padding included: what is received (exact), the capacity, or all blocks.");
  add_number(
      "num_local_experts", [](const RowDescription& rows) { return std::int64_t{rows.num_local_experts}; },
      "Experts of this rank; where they are placed, its slots.");
  add_number(
      "first_expert", [](const RowDescription& rows) { return std::int64_t{rows.first_expert}; },
      "Global id of local expert 0; -1 where experts are placed.");
  add_number(
      "placement_generation",
      [](const RowDescription& rows) { return static_cast<std::int64_t>(rows.placement_generation); },
      "Generation of the placement that the routing was prepared with: whose experts the slots hold.");
  add(
      "src_rank", [](const Description& d) { return d.table(d.rows.src_rank, "int32", d.per_row(false)); },
      "[num_rows] int32; -1 at padding.");
  add(
      "src_token", [](const Description& d) { return d.table(d.rows.src_token, "int32", d.per_row(false)); },
      "[num_rows] int32, index of the token at its rank; -1 at padding.");
  add_optional(
      "local_experts",
      [](const Description& d) {
        return d.token_major() ? d.table(d.rows.local_experts, "int32", d.per_row(true)) : nb::none();
      },
      "token_major: [num_rows, top_k] int32, local expert of each position, -1 where it is not on this rank. "
      "Otherwise None.");
  add_optional(
      "row_expert",
      [](const Description& d) {
        return d.token_major() ? nb::none() : d.table(d.rows.row_expert, "int32", d.per_row(false));
      },
      "Expert layouts: [num_rows] int32, local expert of the row, -1 at padding. token_major: None.");
  add(
      "weights", [](const Description& d) { return d.table(d.rows.weights, "float32", d.per_row(d.token_major())); },
      "token_major: [num_rows, top_k] float32, 0 where the expert is not on this rank. Otherwise [num_rows], 0 at "
      "padding.");
  add(
      "expert_counts",
      [](const Description& d) {
        return d.table(d.rows.expert_counts, "int32", {.sizes = {d.rows.num_local_experts}});
      },
      "[num_local_experts] int32, rows received, drops left out.");
  add_optional(
      "expert_begin",
      [](const Description& d) {
        return d.token_major() ? nb::none()
                               : d.table(d.rows.expert_begin, "int32", {.sizes = {d.rows.num_local_experts + 1}});
      },
      "[num_local_experts + 1] int32, first row of each group; token_major: None.");
  add(
      "expert_dropped",
      [](const Description& d) {
        return d.table(d.rows.expert_dropped, "int32", {.sizes = {d.rows.num_local_experts}});
      },
      "[num_local_experts] int32.");
}

/// Where an array of a lease is kept alive by the dispatcher only, whoever asks takes care of the lease.
nb::object owner_of(const nb::object& self, bool leased) {
  return leased ? self : nb::cast<const PyReceived&>(self).dispatcher;
}

nb::object rows_of(const nb::object& self, bool leased) {
  const auto& received = nb::cast<const PyReceived&>(self);
  return nb::cast(make_array(received.received.rows(), place_of(received.dispatcher), owner_of(self, leased)));
}

nb::object scales_of(const nb::object& self, bool leased) {
  const auto& received = nb::cast<const PyReceived&>(self);
  const ScalesView scales = received.received.scales();
  if (scales.num_columns == 0) return nb::none();
  return nb::cast(make_array(scales, place_of(received.dispatcher), owner_of(self, leased)));
}

nb::object expert_outputs_of(const nb::object& self, bool leased) {
  const auto& received = nb::cast<const PyReceived&>(self);
  const Rows outputs = received.received.expert_outputs();
  if (outputs.hidden == 0) return nb::none();
  return nb::cast(make_array(outputs, place_of(received.dispatcher), owner_of(self, leased)));
}

Array counts_of(const Description& d) {
  return make_array(d.rows.expert_counts, "int32", {.sizes = {d.rows.num_local_experts}}, d.place, d.owner);
}

}  // namespace

nb::object counts_tensor(const nb::object& handle) { return to_torch(counts_of(describe<PyHandle>(handle))); }

nb::tuple row_tensors(const nb::object& received) {
  const auto& lease = nb::cast<const PyReceived&>(received);
  const Place place = place_of(lease.dispatcher);
  const ScalesView scales = lease.received.scales();
  return nb::make_tuple(to_torch(make_array(lease.received.rows(), place, received)),
                        scales.num_columns > 0 ? to_torch(make_array(scales, place, received)) : nb::none());
}

nb::tuple routing_tensors(const nb::object& handle) {
  const Description d = describe<PyHandle>(handle);
  const bool has_places = d.token_major();
  const auto of = [&](const void* data, const char* dtype) {
    return to_torch(make_array(data, dtype, d.per_row(has_places), d.place, d.owner));
  };
  return nb::make_tuple(has_places ? of(d.rows.local_experts, "int32") : nb::none(), of(d.rows.weights, "float32"));
}

void bind_received(nb::module_& module) {
  nb::class_<PyHandle> handle(
      module, "Handle",
      "A prepared routing: which row goes where. Several can be alive at once, up to max_handles "
      "of the dispatcher. The arrays are memory of the dispatcher's device and live as long as the "
      "handle; on CUDA they are filled when the stream gets there.");
  bind_description(handle);
  handle
      .def(
          "try_stats",
          [](const PyHandle& self) -> nb::object {
            const RoutingStats* stats = self.handle.try_stats();
            return stats != nullptr ? stats_object(*stats) : nb::none();
          },
          nb::sig("def try_stats(self) -> epistle._config.RoutingStats | None"),
          "The counts, or None while a device still computes them. Never waits. Raises what prepare has found.")
      .def(
          "wait_stats",
          [](const PyHandle& self) {
            const RoutingStats* stats = nullptr;
            {
              const nb::gil_scoped_release release;
              stats = &self.handle.wait_stats();
            }
            return stats_object(*stats);
          },
          nb::sig("def wait_stats(self) -> epistle._config.RoutingStats"),
          "Waits for the counts on the host; returns at once under exact sizing.")
      .def(
          "read_expert_counts",
          [](const PyHandle& self) {
            std::vector<std::int32_t> counts;
            {
              const nb::gil_scoped_release release;
              counts = self.handle.read_expert_counts();
            }
            return counts;
          },
          "expert_counts on the host, waited for as wait_stats() does. On a GPU that is no wait for what else is on "
          "the "
          "stream, such as the rows of a dispatch.")
      .def_prop_ro(
          "routed_ids",
          [](const nb::object& self) -> nb::object {
            const auto& handle = nb::cast<const PyHandle&>(self);
            const IdsView ids = handle.handle.routed_ids();
            if (ids.data == nullptr) return nb::none();
            return nb::cast(make_array(ids.data, "int32", {.sizes = {ids.num_tokens, ids.top_k}},
                                       place_of(handle.dispatcher), self));
          },
          nb::sig("def routed_ids(self) -> Array | None"),
          "On a GPU: [num_tokens, top_k] int32, the ids of this rank's tokens as prepare has read them; slots where "
          "experts are placed. None on the host, where nobody keeps them.");

  nb::class_<PyReceived> received(
      module, "Received", nb::is_weak_referenceable(),
      "Received rows, and where the experts may write their outputs: a lease on a buffer of "
      "the dispatcher, which has num_buffers to give. The lease lives as long as this object "
      "and the arrays that were taken of it, or until release().");
  bind_description(received);
  received
      .def_prop_ro(
          "rows", [](const nb::object& self) { return rows_of(self, true); }, nb::sig("def rows(self) -> Array"),
          "[num_rows, hidden] of the input type, or float8_e4m3fn where rows are quantised on their way; "
          "padding rows are zero (see zero_padding).")
      .def_prop_ro(
          "scales", [](const nb::object& self) { return scales_of(self, true); },
          nb::sig("def scales(self) -> Array | None"),
          "[num_rows, columns], or [experts, rows_per_expert, columns] in columns of expert blocks: float32, "
          "uint8 (exponents, or raw bytes) or int32 (words of four exponents). None where rows have none.")
      .def_prop_ro(
          "expert_outputs", [](const nb::object& self) { return expert_outputs_of(self, true); },
          nb::sig("def expert_outputs(self) -> Array"),
          "[num_rows, expert_output_hidden]: where expert outputs may be written to save combine a copy.")
      .def_prop_ro(
          "handle",
          [](const PyReceived& self) {
            return PyHandle{self.dispatcher, self.received.handle()};
          },
          nb::sig("def handle(self) -> Handle"), "The routing that these rows came by.")
      .def(
          "borrow",
          [](const nb::object& self) {
            return nb::make_tuple(rows_of(self, false), scales_of(self, false), expert_outputs_of(self, false));
          },
          nb::sig("def borrow(self) -> tuple[Array, Array | None, Array]"),
          "(rows, scales, expert_outputs) that do not hold the lease, only the memory: another call may write there "
          "once "
          "the lease is given back.")
      .def(
          "release", [](PyReceived& self) { self.received.release(); }, "Gives the lease back before the object goes.");

  nb::class_<PyPending>(module, "Pending",
                        "A call whose send half was made and whose receive half is still to come. It must come: other "
                        "ranks wait for it.")
      .def(
          "received",
          [](const PyPending& self) {
            return PyReceived{self.dispatcher, self.pending.received()};
          },
          "Of a dispatch with a handle: where its rows will lie. They are there after the receive half.");
}

}  // namespace epistle::python
