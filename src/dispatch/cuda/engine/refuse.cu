// A rank that has refused its input takes part in the call all the same: its peers learn of the refusal where they wait
// for its announcement.
#include "dispatch/cuda/device/signals.cuh"
#include "dispatch/cuda/engine/kernels.hpp"
#include "dispatch/cuda/engine/launch.hpp"

namespace epistle::cuda {
namespace {

// A thread per rank is enough.
constexpr int kRefuseThreads = 96;
static_assert(kRefuseThreads >= kMaxRanks);

__global__ void __launch_bounds__(kRefuseThreads, 1) refuse_kernel(const __grid_constant__ RefuseArgs args) {
  if (args.behind != nullptr && __ldcg(&args.behind->is_void) != 0) return;
  CallContext call;
  if (!next_call(args.group, {.call = DeviceCall::kRejected, .phase = args.phase}, call)) return;
  announce(call);
  abandon_call(call, false);
  if (threadIdx.x == 0) finish_epoch(call);
}

}  // namespace

const void* refuse_kernel_address() noexcept { return reinterpret_cast<const void*>(&refuse_kernel); }

cudaError_t launch_refuse(const RefuseArgs& args, cudaStream_t stream) {
  refuse_kernel<<<1, kRefuseThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace epistle::cuda
