// Kernels of the benchmark itself; those of the dispatchers are in src/dispatch/cuda.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

namespace epistle {

/// Keeps the stream busy for `duration_ns` of real time on one SM: what is enqueued meanwhile starts without a gap.
[[nodiscard]] cudaError_t launch_bench_delay(cudaStream_t stream, std::int64_t duration_ns);

/// `num_tiles` blocks that multiply and add in registers, each about as long as a tile of a matrix product. `sink` is
/// never written.
[[nodiscard]] cudaError_t launch_compute_tiles(cudaStream_t stream, float* sink, std::int64_t num_tiles);

struct LinkStore {
  const void* source = nullptr;  ///< of this GPU
  void* target = nullptr;        ///< of the peer, or of this GPU
  std::int64_t num_bytes = 0;    ///< a multiple of 16
  int num_sms = 1;
};

/// Copies with 16-byte stores on `num_sms` SMs, one thread block on each.
[[nodiscard]] cudaError_t launch_link_store(cudaStream_t stream, const LinkStore& store);

}  // namespace epistle
