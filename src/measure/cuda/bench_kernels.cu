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

// 8 of these blocks fill an SM. 1 << 13 steps of 4 sums keep one busy for some 10 microseconds if it is alone on its
// SM.
constexpr int kTileThreads = 256;
constexpr int kTileSteps = 1 << 13;
constexpr int kTileSums = 4;

__global__ void __launch_bounds__(kTileThreads) compute_tile_kernel(float* sink, float factor) {
  float sums[kTileSums];
#pragma unroll
  for (int i = 0; i < kTileSums; ++i) sums[i] = static_cast<float>(threadIdx.x + i);
  for (int step = 0; step < kTileSteps; ++step) {
#pragma unroll
    for (int i = 0; i < kTileSums; ++i) sums[i] = fmaf(sums[i], factor, 1.0F);
  }
  // Never true, which the compiler cannot know: the sums stay between 0 and 2 * (256 + 4).
  if (sums[0] + sums[1] + sums[2] + sums[3] < 0.0F) *sink = sums[0];
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

cudaError_t launch_compute_tiles(cudaStream_t stream, float* sink, std::int64_t num_tiles) {
  constexpr float kFactor = 0.5F;
  compute_tile_kernel<<<static_cast<unsigned>(num_tiles), kTileThreads, 0, stream>>>(sink, kFactor);
  return cudaGetLastError();
}

cudaError_t launch_link_store(cudaStream_t stream, const LinkStore& store) {
  link_store_kernel<<<store.num_sms, kStoreThreads, 0, stream>>>(
      static_cast<const uint4*>(store.source), static_cast<uint4*>(store.target),
      store.num_bytes / static_cast<std::int64_t>(sizeof(uint4)));
  return cudaGetLastError();
}

}  // namespace epistle
