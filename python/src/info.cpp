// What there is, what it can do and how much memory it takes.
#include <optional>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "epistle/cuda.hpp"
#include "epistle/routing.hpp"
#include "epistle/version.hpp"

#include "array.hpp"
#include "bindings.hpp"

namespace epistle::python {
namespace {

nb::str text(std::string_view value) { return nb::str(value.data(), value.size()); }

template <typename Enum>
nb::tuple names_of(const std::vector<Enum>& values) {
  nb::list names;
  for (const Enum value : values) names.append(text(to_string(value)));
  return nb::tuple(names);
}

nb::object capabilities_of(const DispatcherInfo& info) {
  const Capabilities& can = info.capabilities();
  nb::list needs;
  for (const std::string_view need : can.needs) needs.append(text(need));
  nb::dict fields;
  fields["layouts"] = names_of(can.layouts);
  fields["inputs"] = names_of(can.inputs);
  fields["scales"] = names_of(can.scales);
  fields["outputs"] = names_of(can.outputs);
  fields["orders"] = names_of(can.orders);
  fields["scale_orders"] = names_of(can.scale_orders);
  fields["exact_sizing"] = can.exact_sizing;
  fields["capacity_sizing"] = can.capacity_sizing;
  fields["quantises"] = can.quantises;
  fields["backward"] = can.backward;
  fields["graph_capture"] = can.graph_capture;
  fields["device_token_count"] = can.device_token_count;
  fields["late_weights"] = can.late_weights;
  fields["placement"] = can.placement;
  fields["masks"] = can.masks;
  fields["joins_domains"] = can.joins_domains;
  fields["joins_hosts"] = can.joins_hosts;
  fields["agrees_on_host"] = can.agrees_on_host;
  fields["one_rank_per_gpu"] = can.one_rank_per_gpu;
  fields["row_flags"] = can.row_flags;
  fields["copy_engines"] = can.copy_engines;
  fields["max_ranks"] = can.max_ranks;
  fields["max_top_k"] = can.max_top_k;
  fields["max_tokens"] = can.max_tokens;
  fields["needs"] = nb::tuple(needs);
  fields["missing"] = text(can.missing);
  return package_attribute("epistle._config", "Capabilities")(**fields);
}

nb::object memory_of(const DispatcherInfo& info, const nb::object& config, int num_ranks) {
  constexpr const char* kKinds[] = {"shared", "private", "pinned_host"};
  const nb::object section_class = package_attribute("epistle._config", "MemorySection");
  nb::list sections;
  for (const MemorySection& section : info.memory(read_config(config), num_ranks).sections) {
    sections.append(section_class(text(section.name), kKinds[static_cast<int>(section.kind)], section.initial_bytes,
                                  section.largest_bytes));
  }
  return package_attribute("epistle._config", "MemoryPlan")(nb::tuple(sections));
}

template <typename Value>
nb::object own_array(std::vector<Value> values, const char* dtype, std::int64_t rows, std::int64_t columns) {
  auto* const kept = new std::vector<Value>(std::move(values));
  nb::capsule owner(kept, [](void* data) noexcept { delete static_cast<std::vector<Value>*>(data); });
  return nb::cast(make_array(kept->data(), dtype, {.sizes = {rows, columns}}, Place{}, std::move(owner)));
}

nb::tuple routing_of(const std::string& spec, std::int64_t num_tokens, std::int32_t num_experts, std::int32_t top_k,
                     int rank, int num_ranks, std::uint64_t seed) {
  RoutingTable table = generate_routing(RoutingSpec::parse(spec), {.num_tokens = num_tokens,
                                                                   .num_experts = num_experts,
                                                                   .top_k = top_k,
                                                                   .rank = rank,
                                                                   .num_ranks = num_ranks,
                                                                   .seed = seed});
  return nb::make_tuple(own_array(std::move(table.expert_ids), "int32", num_tokens, top_k),
                        own_array(std::move(table.weights), "float32", num_tokens, top_k));
}

}  // namespace

void bind_info(nb::module_& module) {
  // The infos live as long as the library.
  nb::class_<DispatcherInfo>(module, "DispatcherInfo", "One dispatcher on one device.")
      .def_prop_ro(
          "name", [](const DispatcherInfo& info) { return text(info.name()); }, nb::sig("def name(self) -> str"))
      .def_prop_ro(
          "device", [](const DispatcherInfo& info) { return text(to_string(info.device())); },
          nb::sig("def device(self) -> str"))
      .def_prop_ro(
          "summary", [](const DispatcherInfo& info) { return text(info.summary()); },
          nb::sig("def summary(self) -> str"))
      .def_prop_ro("capabilities", &capabilities_of, nb::sig("def capabilities(self) -> epistle._config.Capabilities"))
      .def(
          "cannot_serve",
          [](const DispatcherInfo& info, const nb::object& config, int num_ranks) {
            return info.cannot_serve(read_config(config), num_ranks);
          },
          nb::arg("config"), nb::arg("num_ranks"),
          nb::sig("def cannot_serve(self, config: epistle._config.DispatcherConfig, num_ranks: int) -> str | None"),
          "Why it cannot serve the configuration, and what to change; None where it can.")
      .def("memory", &memory_of, nb::arg("config"), nb::arg("num_ranks"),
           nb::sig("def memory(self, config: epistle._config.DispatcherConfig, num_ranks: int) -> "
                   "epistle._config.MemoryPlan"),
           "The memory of one rank, before anything is allocated.")
      .def("__repr__", [](const DispatcherInfo& info) {
        return "<epistle.DispatcherInfo " + std::string(info.name()) + " on " + std::string(to_string(info.device())) +
               ">";
      });
  module.def(
      "dispatchers",
      [] {
        nb::list infos;
        for (const DispatcherInfo* info : dispatchers()) infos.append(nb::cast(info, nb::rv_policy::reference));
        return infos;
      },
      nb::sig("def dispatchers() -> list[DispatcherInfo]"),
      "All dispatchers that Epistle knows, those of a device in order of preference.");
  module.def(
      "find_dispatcher",
      [](const std::string& name, const nb::object& device) -> const DispatcherInfo& {
        return find_dispatcher(name, read_device(device));
      },
      nb::arg("name"), nb::arg("device") = "host", nb::rv_policy::reference,
      nb::sig("def find_dispatcher(name: str, device: str = 'host') -> DispatcherInfo"));
  module.def(
      "cuda_support",
      [] {
        const CudaSupport support = cuda_support();
        return package_attribute("epistle._config", "CudaSupport")(support.compiled, support.num_devices,
                                                                   support.reason);
      },
      nb::sig("def cuda_support() -> epistle._config.CudaSupport"), "What this build and this machine can do.");
  module.def(
      "generate_routing", &routing_of, nb::arg("spec"), nb::kw_only(), nb::arg("num_tokens"), nb::arg("num_experts"),
      nb::arg("top_k"), nb::arg("rank") = 0, nb::arg("num_ranks") = 1, nb::arg("seed") = 1,
      nb::sig("def generate_routing(spec: str, *, num_tokens: int, num_experts: int, top_k: int, rank: int = 0, "
              "num_ranks: int = 1, seed: int = 1) -> tuple[Array, Array]"),
      "One rank's routing: expert ids [num_tokens, top_k] int32 and weights [num_tokens, top_k] float32. "
      "``spec``: uniform, balanced, forced-random, zipf:A, lognormal:S or trace:FILE. The same request gives the "
      "same bits on every machine.");
  module.attr("version") = nb::str(EPISTLE_VERSION_STRING);
}

}  // namespace epistle::python
