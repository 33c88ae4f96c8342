// The CUDA device in a build without CUDA: it says so.
#include "epistle/cuda.hpp"
#include "epistle/error.hpp"

#include "dispatch/cuda/direct/direct_info.hpp"

namespace epistle {
namespace {

constexpr const char* kReason = "this build has no CUDA device; configure with -DEPISTLE_CUDA=ON and a CUDA compiler";

}  // namespace

CudaSupport cuda_support() { return {.compiled = false, .num_devices = 0, .reason = kReason}; }

namespace cuda {

void check_direct(const ResolvedConfig& /*config*/, const DeviceOptions& /*options*/, const Group& /*group*/) {
  throw Error(ErrorCode::kUnsupported, kReason);
}
// Nobody comes here: the checks are made first.
std::unique_ptr<DispatcherImpl> create_direct(const Creation& /*creation*/) {
  throw Error(ErrorCode::kUnsupported, kReason);
}

}  // namespace cuda
}  // namespace epistle
