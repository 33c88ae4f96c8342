// What the files of the extension module share.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include <nanobind/nanobind.h>

#include "epistle/config.hpp"
#include "epistle/dispatcher.hpp"
#include "epistle/group.hpp"
#include "epistle/placement.hpp"

namespace epistle::python {

namespace nb = nanobind;

// Each adds its part to the module.
void bind_array(nb::module_& module);
void bind_balance(nb::module_& module);
void bind_errors(nb::module_& module);
void bind_group(nb::module_& module);
void bind_info(nb::module_& module);
void bind_received(nb::module_& module);
void bind_dispatcher(nb::module_& module);
void bind_load_window(nb::module_& module);
void bind_weight_store(nb::module_& module);

namespace dlpack {
struct ExchangeApi;
}

/// What Python holds of a dispatcher.
struct PyDispatcher {
  nb::object group;
  Dispatcher dispatcher;
  const dlpack::ExchangeApi* library = nullptr;  ///< of the tensors of its last call, which a receive half goes by
  Stream stream = {};                            ///< of its last call

  ~PyDispatcher();
  [[nodiscard]] bool on_cuda() const noexcept { return dispatcher.info().device() == Device::kCuda; }
};

/// A handle keeps its dispatcher alive, which it must not outlive: members go in the reverse order.
struct PyHandle {
  nb::object dispatcher;
  Handle handle;
};

struct PyReceived {
  nb::object dispatcher;
  Received received;
};

struct PyPending {
  nb::object dispatcher;
  Pending pending;
};

/// Where an array that is shown to Python lies.
struct Place {
  Device device = Device::kHost;
  int ordinal = 0;
};
[[nodiscard]] Place place_of(const nb::object& dispatcher);

/// Handle.expert_counts of a handle, as a tensor of Torch that keeps it.
[[nodiscard]] nb::object counts_tensor(const nb::object& handle);

/// (rows, scales or None) of a lease, and (local_experts or None, weights) of a handle, as tensors of Torch that keep
/// them.
[[nodiscard]] nb::tuple row_tensors(const nb::object& received);
[[nodiscard]] nb::tuple routing_tensors(const nb::object& handle);

/// An attribute of one of the package's own Python modules.
[[nodiscard]] nb::object package_attribute(const char* module, const char* name);

/// The enumerator whose to_string() is `text`, of those from 0 to `last`.
template <typename Enum>
[[nodiscard]] Enum parse_enum(std::string_view what, const nb::handle& value, Enum last) {
  const auto text = nb::cast<std::string>(nb::str(value));
  std::string names;
  for (int idx = 0; idx <= static_cast<int>(last); ++idx) {
    const std::string_view name = to_string(static_cast<Enum>(idx));
    if (name == text) return static_cast<Enum>(idx);
    names.append(names.empty() ? "" : ", ").append(name);
  }
  throw Error(ErrorCode::kInvalidArgument,
              std::string(what).append(" is '").append(text).append("'; it is one of ").append(names));
}

/// From the dataclasses of epistle/_config.py; no options are those of the host.
[[nodiscard]] DispatcherConfig read_config(const nb::handle& config);
[[nodiscard]] DeviceOptions read_options(const nb::handle& options);
[[nodiscard]] Device read_device(const nb::handle& device);
/// None is the trivial placement, both ways.
[[nodiscard]] Placement read_placement(const nb::handle& placement);
[[nodiscard]] nb::object placement_object(const Placement& placement);

}  // namespace epistle::python
