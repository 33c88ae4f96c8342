#include "measure/cuda/bench_kernels.hpp"

namespace epistle {
namespace {

// One block fills an SM: more than half of the threads that any SM holds (1536 or 2048).
constexpr int kStoreThreads = 1024;
// Loads in flight per thread: 1024 threads x 4 x 16 bytes = 64 KiB per SM cover the latency of HBM.
constexpr int kUnroll = 4;

__device__ std::uint64_t global_time_ns() {
  std::uint64_t time_ns = 0;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time_ns));
  return time_ns;
}

__global__ void bench_delay_kernel(std::uint64_t duration_ns) {
  const std::uint64_t begin_ns = global_time_ns();
  while (global_time_ns() - begin_ns < duration_ns) {
  }
}

__global__ void __launch_bounds__(kStoreThreads, 1)
    link_store_kernel(const uint4* source, uint4* target, std::int64_t num_vectors) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  std::int64_t idx = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; idx + (kUnroll - 1) * stride < num_vectors; idx += kUnroll * stride) {
    uint4 values[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) values[i] = __ldcs(source + idx + i * stride);
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) target[idx + i * stride] = values[i];
  }
  for (; idx < num_vectors; idx += stride) target[idx] = __ldcs(source + idx);
}

}  // namespace

cudaError_t launch_bench_delay(cudaStream_t stream, std::int64_t duration_ns) {
  if (duration_ns <= 0) return cudaSuccess;
  bench_delay_kernel<<<1, 1, 0, stream>>>(static_cast<std::uint64_t>(duration_ns));
  return cudaGetLastError();
}

cudaError_t launch_link_store(cudaStream_t stream, const LinkStore& store) {
  link_store_kernel<<<store.num_sms, kStoreThreads, 0, stream>>>(
      static_cast<const uint4*>(store.source), static_cast<uint4*>(store.target),
      store.num_bytes / static_cast<std::int64_t>(sizeof(uint4)));
  return cudaGetLastError();
}

}  // namespace epistle
