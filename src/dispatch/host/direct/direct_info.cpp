#include "dispatch/host/direct/direct_info.hpp"

#include "dispatch/host/direct/direct.hpp"
#include "dispatch/host/engine/host_functions.hpp"

namespace epistle::host {

const DispatcherInfo& direct_info() {
  static const DispatcherInfo info("direct", Device::kHost,
                                   "each row written once per (token, rank) straight to its final place",
                                   host::host_capabilities(), host::host_functions<DirectMover, HostRules>());
  return info;
}

}  // namespace epistle::host
