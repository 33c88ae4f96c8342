// The dispatcher that needs NCCL in a build without it: it says so.
#include "epistle/error.hpp"

#include "dispatch/cuda/alltoall/alltoall_info.hpp"

namespace epistle::cuda {
namespace {

constexpr const char* kReason =
    "this build has no NCCL; configure with -DEPISTLE_CUDA=ON where a CUDA compiler and nccl.h are found";

}  // namespace

void check_alltoall(const ResolvedConfig& /*config*/, const DeviceOptions& /*options*/, const Group& /*group*/) {
  throw Error(ErrorCode::kUnsupported, kReason);
}
// Nobody comes here: the checks are made first.
std::unique_ptr<DispatcherImpl> create_alltoall(const Creation& /*creation*/) {
  throw Error(ErrorCode::kUnsupported, kReason);
}

}  // namespace epistle::cuda
