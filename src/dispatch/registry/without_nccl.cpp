// The dispatcher that needs NCCL in a build without it: it says so.
#include "epistle/error.hpp"

#include "dispatch/call/build_parts.hpp"
#include "dispatch/cuda/alltoall/alltoall_info.hpp"

namespace epistle::cuda {

// Nobody comes here: what a build lacks is a capability, looked at before all else.
std::unique_ptr<DispatcherImpl> create_alltoall(const Creation& /*creation*/) {
  throw Error(ErrorCode::kUnsupported, std::string(kLackOfNccl));
}

}  // namespace epistle::cuda
