// The CUDA device in a build without CUDA: it says so.
#include "epistle/cuda.hpp"
#include "epistle/error.hpp"

#include "dispatch/call/build_parts.hpp"
#include "dispatch/cuda/direct/direct_info.hpp"
#include "dispatch/cuda/engine/cuda_options.hpp"
#include "dispatch/cuda/hybrid/hybrid_info.hpp"
#include "dispatch/cuda/low_latency/low_latency_info.hpp"

namespace epistle {

CudaSupport cuda_support() { return {.compiled = false, .num_devices = 0, .reason = std::string(kLackOfCuda)}; }

namespace cuda {

// Nobody comes here: what a build lacks is a capability, looked at before all else.
void check_cuda_options(const ResolvedConfig& /*config*/, const DeviceOptions& /*options*/, const Group& /*group*/) {
  throw Error(ErrorCode::kUnsupported, std::string(kLackOfCuda));
}
void check_direct(const ResolvedConfig& /*config*/, const DeviceOptions& /*options*/, const Group& /*group*/) {
  throw Error(ErrorCode::kUnsupported, std::string(kLackOfCuda));
}
std::unique_ptr<DispatcherImpl> create_direct(const Creation& /*creation*/) {
  throw Error(ErrorCode::kUnsupported, std::string(kLackOfCuda));
}
void check_low_latency(const ResolvedConfig& /*config*/, const DeviceOptions& /*options*/, const Group& /*group*/) {
  throw Error(ErrorCode::kUnsupported, std::string(kLackOfCuda));
}
std::unique_ptr<DispatcherImpl> create_low_latency(const Creation& /*creation*/) {
  throw Error(ErrorCode::kUnsupported, std::string(kLackOfCuda));
}
std::unique_ptr<DispatcherImpl> create_hybrid(const Creation& /*creation*/) {
  throw Error(ErrorCode::kUnsupported, std::string(kLackOfCuda));
}

}  // namespace cuda
}  // namespace epistle
