#include "measure/cuda/compute_beside.hpp"

#include "gpu/cuda_error.hpp"
#include "measure/cuda/bench_kernels.hpp"

namespace epistle {

ComputeBeside::ComputeBeside() : sink_(sizeof(float)) {
  int lowest = 0;
  int highest = 0;
  cuda::check_cuda(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "ask for the priorities of streams");
  cuda::check_cuda(cudaStreamCreateWithPriority(&own_, cudaStreamNonBlocking, lowest), "create a stream");
}

ComputeBeside::~ComputeBeside() { cuda::warn_cuda(cudaStreamDestroy(own_), "destroy a stream"); }

void ComputeBeside::start(cudaStream_t stream, std::int64_t num_units) {
  begin_.record(stream);
  begin_.hold_back(own_);
  cuda::check_cuda(launch_compute_tiles(own_, sink_.as<float>(), num_units), "launch the work beside the calls");
  end_.record(own_);
}

void ComputeBeside::join(cudaStream_t stream) { end_.hold_back(stream); }

}  // namespace epistle
