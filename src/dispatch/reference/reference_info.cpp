#include "dispatch/reference/reference_info.hpp"

#include "dispatch/host/engine/host_functions.hpp"
#include "dispatch/reference/reference_dispatcher.hpp"

namespace epistle::reference {

const DispatcherInfo& reference_info() {
  static const DispatcherInfo info(
      "reference", Device::kHost, "every rank sees all inputs, one element at a time: for checking",
      host::host_capabilities(), host::host_functions<ReferenceMover, host::PublishedInputRules>());
  return info;
}

}  // namespace epistle::reference
