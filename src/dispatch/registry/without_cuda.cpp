// The CUDA device in a build without CUDA: it says so.
#include "epistle/cuda.hpp"

namespace epistle {

namespace {
constexpr const char* kReason = "this build has no CUDA device; configure with -DEPISTLE_CUDA=ON and a CUDA compiler";
}

CudaSupport cuda_support() { return {.compiled = false, .num_devices = 0, .reason = kReason}; }

std::unique_ptr<CudaDispatcher> make_cuda_dispatcher(std::string_view /*name*/, Group& /*group*/,
                                                     const DispatcherConfig& /*config*/,
                                                     const CudaOptions& /*options*/) {
  throw Error(ErrorCode::kUnsupported, kReason);
}

const std::vector<DispatcherInfo>& cuda_dispatcher_registry() noexcept {
  static const std::vector<DispatcherInfo> none;
  return none;
}

}  // namespace epistle
