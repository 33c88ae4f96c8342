#include "dispatch/host/low_latency/low_latency_info.hpp"

#include "dispatch/host/engine/host_functions.hpp"
#include "dispatch/host/low_latency/low_latency.hpp"

namespace epistle::host {

const DispatcherInfo& low_latency_info() {
  static const DispatcherInfo info(
      "low_latency", Device::kHost, "every call is agreed on and sent in one step: for the few tokens of a decode step",
      host::host_capabilities(), host::host_functions<LowLatencyMover, PublishedSetsRules>());
  return info;
}

}  // namespace epistle::host
