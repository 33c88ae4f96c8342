#include <cstdint>

#include "cuda_soak/replay_kernels.hpp"

namespace epistle::testing {
namespace {

// A step's inputs are 33 KiB: one block, so that nothing has to be agreed on between blocks.
constexpr int kThreads = 1024;
constexpr int kCopyThreads = 256;
constexpr std::int64_t kMaxCopyBlocks = 64;
/// Two NaNs of bf16 that no sum gives.
constexpr unsigned kPoison = 0xffb1ffb1U;
constexpr std::uint64_t kStepsPerDelay = 4;
constexpr std::uint64_t kMaxDelayNs = 200'000;

/// Where in a step a rank is late.
enum class DelayPoint : std::uint64_t { kBeforeDispatch = 1, kBeforeCombine = 2 };

__device__ std::uint64_t now_ns() {
  std::uint64_t time_ns = 0;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time_ns));
  return time_ns;
}

/// For one thread. Long delays and short ones, at one step in four.
__device__ void be_late(const ReplayArgs& args, std::uint64_t step, DelayPoint point) {
  const std::uint64_t key = mix(args.seed, 1000 * (args.rank + 1) + static_cast<std::uint64_t>(point));
  const std::uint64_t bits = mix(key, step);
  if (bits % kStepsPerDelay != 0) return;
  const std::uint64_t duration_ns = (bits >> 8) % kMaxDelayNs;
  const std::uint64_t begin_ns = now_ns();
  while (now_ns() - begin_ns < duration_ns) {
  }
}

template <typename Value>
__device__ void copy_in_block(const Value* source, Value* target) {
  static_assert(sizeof(Value) % sizeof(uint4) == 0);
  const auto* const from = reinterpret_cast<const uint4*>(source);
  auto* const to = reinterpret_cast<uint4*>(target);
  for (int idx = static_cast<int>(threadIdx.x); idx < static_cast<int>(sizeof(Value) / sizeof(uint4));
       idx += kThreads) {
    to[idx] = from[idx];
  }
}

__global__ void __launch_bounds__(kThreads) replay_inputs_kernel(ReplayArgs args) {
  const std::uint64_t step = args.findings->num_steps;
  copy_in_block(args.variants + replay_variant(args.seed, step), args.inputs);
  auto* const out = reinterpret_cast<unsigned*>(args.out);
  for (int idx = static_cast<int>(threadIdx.x); idx < static_cast<int>(sizeof(ReplayRows) / sizeof(unsigned));
       idx += kThreads) {
    out[idx] = kPoison;
  }
  if (threadIdx.x == 0) be_late(args, step, DelayPoint::kBeforeDispatch);
}

__global__ void __launch_bounds__(kCopyThreads)
    replay_experts_kernel(ReplayArgs args, const uint4* rows, uint4* outputs, std::int64_t num_vectors) {
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kCopyThreads + threadIdx.x;
  for (std::int64_t idx = first; idx < num_vectors; idx += static_cast<std::int64_t>(gridDim.x) * kCopyThreads) {
    outputs[idx] = rows[idx];
  }
  if (first == 0) be_late(args, args.findings->num_steps, DelayPoint::kBeforeCombine);
}

__global__ void __launch_bounds__(kThreads) replay_check_kernel(ReplayArgs args) {
  const std::uint64_t step = args.findings->num_steps;
  const ReplayRows& expected = args.expectations[replay_variant(args.seed, step)];
  for (int idx = static_cast<int>(threadIdx.x); idx < kReplayTokens * kReplayHidden; idx += kThreads) {
    if (args.out->elements[idx] == expected.elements[idx]) continue;
    atomicAdd(reinterpret_cast<unsigned long long*>(&args.findings->num_mismatches), 1ULL);
    if (atomicExch(&args.findings->has_first, 1U) != 0) continue;
    args.findings->step = step;
    args.findings->token = idx / kReplayHidden;
    args.findings->element = idx % kReplayHidden;
    args.findings->actual = args.out->elements[idx];
    args.findings->expected = expected.elements[idx];
  }
  __syncthreads();  // everybody has read the step
  if (threadIdx.x == 0) args.findings->num_steps = step + 1;
}

}  // namespace

cudaError_t load_replay_kernels() {
  cudaFuncAttributes attributes;
  cudaError_t error = cudaFuncGetAttributes(&attributes, replay_inputs_kernel);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, replay_experts_kernel);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, replay_check_kernel);
  return error;
}

cudaError_t launch_replay_inputs(const ReplayArgs& args, cudaStream_t stream) {
  replay_inputs_kernel<<<1, kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t launch_replay_experts(const ReplayArgs& args, const void* rows, void* outputs, std::int64_t num_bytes,
                                  cudaStream_t stream) {
  const std::int64_t num_vectors = num_bytes / static_cast<std::int64_t>(sizeof(uint4));
  const std::int64_t wanted = (num_vectors + kCopyThreads - 1) / kCopyThreads;
  const auto num_blocks = static_cast<unsigned>(wanted < 1 ? 1 : wanted < kMaxCopyBlocks ? wanted : kMaxCopyBlocks);
  replay_experts_kernel<<<num_blocks, kCopyThreads, 0, stream>>>(args, static_cast<const uint4*>(rows),
                                                                 static_cast<uint4*>(outputs), num_vectors);
  return cudaGetLastError();
}

cudaError_t launch_replay_check(const ReplayArgs& args, cudaStream_t stream) {
  replay_check_kernel<<<1, kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace epistle::testing
