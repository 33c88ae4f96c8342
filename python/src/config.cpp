// The dataclasses of epistle/_config.py to the structs of the library, once per dispatcher.
#include <optional>
#include <span>

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.hpp"

namespace epistle::python {
namespace {

bool is_a(const nb::handle& object, const char* class_name) {
  return nb::isinstance(object, package_attribute("epistle._config", class_name));
}

template <typename Value>
Value get(const nb::handle& object, const char* name) {
  const nb::object value = object.attr(name);
  try {
    return nb::cast<Value>(value);
  } catch (const nb::cast_error&) {
    throw Error(ErrorCode::kInvalidArgument, std::string(name) + " is " + nb::repr(value).c_str() +
                                                 ", which is not of its type or out of its range");
  }
}

Error unknown(const char* name, const nb::handle& value, const char* expected) {
  return {ErrorCode::kInvalidArgument, std::string(name) + " is " + nb::repr(value).c_str() + "; it is " + expected};
}

Layout read_layout(const nb::handle& layout) {
  if (is_a(layout, "TokenMajor")) return TokenMajor{};
  if (is_a(layout, "ExpertMajor")) return ExpertMajor{.alignment = get<std::int32_t>(layout, "alignment")};
  if (is_a(layout, "ExpertBlocks"))
    return ExpertBlocks{.rows_per_expert = get<std::int64_t>(layout, "rows_per_expert")};
  throw unknown("layout", layout, "TokenMajor(), ExpertMajor(...) or ExpertBlocks(...)");
}

Sizing read_sizing(const nb::handle& sizing) {
  if (is_a(sizing, "Exact")) return Exact{};
  if (is_a(sizing, "Capacity")) return Capacity{.rows_per_rank = get<std::int64_t>(sizing, "rows_per_rank")};
  throw unknown("sizing", sizing, "Exact() or Capacity(...)");
}

Wire read_wire(const nb::handle& wire) {
  if (is_a(wire, "AsGiven")) return AsGiven{};
  if (is_a(wire, "Fp8Blocks")) {
    return Fp8Blocks{.scales = parse_enum("scales", wire.attr("scales"), ScaleFormat::kBytes),
                     .powers_of_two = get<bool>(wire, "powers_of_two"),
                     .order = parse_enum("order", wire.attr("order"), ScaleOrder::kColumns)};
  }
  throw unknown("wire", wire, "AsGiven() or Fp8Blocks(...)");
}

CudaMover read_mover(const nb::handle& value) {
  constexpr std::pair<const char*, CudaMover> kMovers[] = {{"auto", CudaMover::kAuto},
                                                           {"vector", CudaMover::kVector},
                                                           {"bulk", CudaMover::kBulk},
                                                           {"copy_engines", CudaMover::kCopyEngines}};
  const auto text = nb::cast<std::string>(nb::str(value));
  for (const auto& [name, mover] : kMovers) {
    if (text == name) return mover;
  }
  throw unknown("mover", value, "auto, vector, bulk or copy_engines");
}

}  // namespace

Placement read_placement(const nb::handle& placement) {
  if (placement.is_none()) return {};
  if (!is_a(placement, "Placement")) throw unknown("placement", placement, "None or Placement(...)");
  return {get<std::int32_t>(placement, "num_experts"),
          get<std::vector<std::vector<std::int32_t>>>(placement, "slot_experts"),
          get<std::uint64_t>(placement, "generation"),
          {.quotas = get<std::vector<std::vector<double>>>(placement, "quotas"),
           .near_first = get<bool>(placement, "near_first"),
           .domain_of_rank = get<std::vector<std::int32_t>>(placement, "domain_of_rank"),
           .max_imbalance = get<double>(placement, "max_imbalance")}};
}

nb::object placement_object(const Placement& placement) {
  if (placement.is_trivial()) return nb::none();
  std::vector<std::vector<std::int32_t>> slot_experts;
  for (std::int32_t rank = 0; rank < placement.num_ranks(); ++rank) {
    const std::span<const std::int32_t> experts = placement.experts_of(rank);
    slot_experts.emplace_back(experts.begin(), experts.end());
  }
  const ReplicaChoice& choice = placement.choice();
  return package_attribute("epistle._config", "Placement")(placement.num_experts(), slot_experts,
                                                           placement.generation(), choice.quotas, choice.near_first,
                                                           choice.domain_of_rank, choice.max_imbalance);
}

DispatcherConfig read_config(const nb::handle& config) {
  if (!is_a(config, "DispatcherConfig")) throw unknown("config", config, "a DispatcherConfig");
  DispatcherConfig result{.hidden = get<std::int64_t>(config, "hidden"),
                          .num_experts = get<std::int32_t>(config, "num_experts"),
                          .top_k = get<std::int32_t>(config, "top_k"),
                          .max_tokens = get<std::int64_t>(config, "max_tokens"),
                          .input = parse_enum("input", config.attr("input"), DType::kRaw),
                          .raw_scale_bytes = get<std::int64_t>(config, "raw_scale_bytes"),
                          .wire = read_wire(config.attr("wire")),
                          .layout = read_layout(config.attr("layout")),
                          .sizing = read_sizing(config.attr("sizing")),
                          .overflow = parse_enum("overflow", config.attr("overflow"), OverflowPolicy::kDrop),
                          .apply_weights = get<bool>(config, "apply_weights"),
                          .zero_padding = get<bool>(config, "zero_padding"),
                          .num_buffers = get<std::int32_t>(config, "num_buffers"),
                          .max_handles = get<std::int32_t>(config, "max_handles"),
                          .placement = read_placement(config.attr("placement")),
                          .slots_per_rank = get<std::int32_t>(config, "slots_per_rank")};
  if (const nb::object order = config.attr("order"); !order.is_none()) {
    result.order = parse_enum("order", order, SumOrder::kDomains);
  }
  if (const nb::object output = config.attr("expert_output"); !output.is_none()) {
    result.expert_output = parse_enum("expert_output", output, DType::kRaw);
  }
  if (!config.attr("expert_output_hidden").is_none()) {
    result.expert_output_hidden = get<std::int64_t>(config, "expert_output_hidden");
  }
  return result;
}

DeviceOptions read_options(const nb::handle& options) {
  if (options.is_none()) return HostOptions{};
  if (is_a(options, "Host")) return HostOptions{.num_workers = get<std::int32_t>(options, "num_workers")};
  if (is_a(options, "Cuda")) {
    return CudaOptions{.device = get<int>(options, "device"),
                       .num_sms = get<int>(options, "num_sms"),
                       .mover = read_mover(options.attr("mover"))};
  }
  throw unknown("options", options, "Host(...) or Cuda(...)");
}

Device read_device(const nb::handle& device) { return parse_enum("device", device, Device::kCuda); }

}  // namespace epistle::python
