#include "dispatch/host/alltoall/alltoall_info.hpp"

#include "dispatch/host/alltoall/alltoall.hpp"
#include "dispatch/host/engine/host_functions.hpp"

namespace epistle::host {

const DispatcherInfo& alltoall_info() {
  static const DispatcherInfo info(
      "alltoall", Device::kHost, "permute, one all-to-all-v, unpermute: the conservative baseline",
      host::host_capabilities(), host::host_functions<AllToAllMover, Transport::kAllToAll>());
  return info;
}

}  // namespace epistle::host
