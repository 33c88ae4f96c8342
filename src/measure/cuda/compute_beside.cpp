#include "measure/cuda/compute_beside.hpp"

#include "gpu/cuda_error.hpp"
#include "measure/cuda/bench_kernels.hpp"

namespace epistle {

ComputeBeside::ComputeBeside() : sink_(sizeof(float)), own_(cuda::StreamPriority::kLowest) {}

void ComputeBeside::start(cudaStream_t stream, std::int64_t num_units) {
  begin_.record(stream);
  begin_.hold_back(own_.get());
  cuda::check_cuda(launch_compute_tiles(own_.get(), sink_.as<float>(), num_units), "launch the work beside the calls");
  end_.record(own_.get());
}

void ComputeBeside::join(cudaStream_t stream) { end_.hold_back(stream); }

}  // namespace epistle
