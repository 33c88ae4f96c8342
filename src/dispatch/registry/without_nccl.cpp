// The dispatcher that needs NCCL in a build without it: it says so.
#include "epistle/error.hpp"

#include "dispatch/call/build_parts.hpp"
#include "dispatch/cuda/alltoall/alltoall_info.hpp"

namespace epistle::cuda {

void check_alltoall(const ResolvedConfig& /*config*/, const DeviceOptions& /*options*/, const Group& /*group*/) {
  throw Error(ErrorCode::kUnsupported, std::string(kLackOfNccl));
}
// Nobody comes here: the checks are made first.
std::unique_ptr<DispatcherImpl> create_alltoall(const Creation& /*creation*/) {
  throw Error(ErrorCode::kUnsupported, std::string(kLackOfNccl));
}

}  // namespace epistle::cuda
