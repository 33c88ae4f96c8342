// What the backward passes need besides moves and sums: gradients of the weights, and rows times their weights.
#include "dispatch/cuda/device/formats.cuh"
#include "dispatch/cuda/device/rows.cuh"
#include "dispatch/cuda/device/signals.cuh"
#include "dispatch/cuda/engine/kernels.hpp"
#include "dispatch/cuda/engine/launch.hpp"

namespace epistle::cuda {
namespace {

constexpr int kThreads = 256;

/// Reads the gradients of this rank's weights where the experts' ranks have put them. Where sums follow, both kernels
/// are one call: this one announces it, the next one announces the same once more, and ends it.
__global__ void __launch_bounds__(kThreads, 1) weight_gradient_kernel(const __grid_constant__ WeightGradientArgs args) {
  const DeviceGroup& group = args.group;
  CallContext call;
  const CallStart start{
      .call = args.call, .phase = Phase::kCombine, .handle = args.handle.totals, .buffer = args.buffer};
  if (!next_call(group, start, call)) return;
  if (blockIdx.x == 0) announce(call);
  const int top_k = args.handle.top_k;
  const std::int64_t per_row = args.layout.weights_per_row();
  const ExpertPartition partition = args.layout.partition();
  const bool ok = wait_all_ready(call);
  if (ok && args.grad_topk_weights != nullptr) {
    const std::int64_t first = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
    for (std::int64_t i = first; i < args.handle.num_tokens * top_k; i += std::int64_t{gridDim.x} * kThreads) {
      const std::int32_t row = args.handle.dst_row[i];
      float gradient = 0.0F;
      if (row >= 0) {
        const int rank = partition.rank_of(args.handle.expert_ids[i]);
        const auto* gradients = reinterpret_cast<const float*>(group.section(rank, BufferSection::kGradWeights));
        gradient = __ldcg(gradients + row * per_row + (args.layout.token_major() ? i % top_k : 0));
      }
      args.grad_topk_weights[i] = gradient;
    }
  }
  if (!args.ends_call) return;
  if (!ok) return give_up_call(call, true, 0);
  signal_done<true>(call);
  complete_call(call);
}

/// Dot product of two rows in the order of the contract: element i to lane i mod 16, ascending, then a tree. Both
/// halves of the warp hold the same lanes; all lanes get the result.
template <class Format>
__device__ float dot_rows(const std::byte* a, const std::byte* b, std::int64_t num_bytes) {
  constexpr int kLanes = 16;
  constexpr int kVectorsPerStep = kLanes / Format::kElements;
  // A lane takes element lane mod 16 of every 16: its vector of the step and its element of that vector are fixed.
  const int lane = lane_id() % kLanes;
  const int vector = lane / Format::kElements;
  const int element = lane % Format::kElements;
  float sum = 0.0F;
  for (std::int64_t at = vector; at < num_bytes / kVectorBytes; at += kVectorsPerStep) {
    float left[Format::kElements];
    float right[Format::kElements];
    uint4 va;
    uint4 vb;
    auto* bytes_a = reinterpret_cast<std::uint32_t*>(&va);
    auto* bytes_b = reinterpret_cast<std::uint32_t*>(&vb);
    for (int w = 0; w < 4; ++w) {
      std::uint32_t word_a = 0;
      std::uint32_t word_b = 0;
      for (int byte = 0; byte < 4; ++byte) {
        word_a |= static_cast<std::uint32_t>(a[at * kVectorBytes + w * 4 + byte]) << (8 * byte);
        word_b |= static_cast<std::uint32_t>(b[at * kVectorBytes + w * 4 + byte]) << (8 * byte);
      }
      bytes_a[w] = word_a;
      bytes_b[w] = word_b;
    }
    Format::unpack(va, left);
    Format::unpack(vb, right);
    float product = 0.0F;
#pragma unroll
    for (int e = 0; e < Format::kElements; ++e) {
      if (e == element) product = __fmul_rn(left[e], right[e]);
    }
    sum = __fadd_rn(sum, product);
  }
  for (int stride = kLanes / 2; stride > 0; stride /= 2) {
    sum = __fadd_rn(sum, __shfl_down_sync(kFullWarp, sum, static_cast<unsigned>(stride), kLanes));
  }
  sum = __shfl_sync(kFullWarp, sum, 0);
  return __uint_as_float(Fp32Format::canonical(sum));
}

/// Gradients of the weights (unless there are no saved rows) from saved and gradient rows, then every gradient row
/// times its weight, in place; nothing where the ranks did not agree on the call, and the rows are other ones.
template <class Format>
__global__ void __launch_bounds__(kThreads) scale_rows_kernel(const __grid_constant__ ScaleRowsArgs args) {
  if (args.local != nullptr && (args.local->failed != 0 || args.local->abandoned == args.local->epoch)) return;
  const std::int64_t row_bytes = args.layout.params().combine_row_bytes;
  const int top_k = args.handle.top_k;
  const std::int64_t num_rows = min(std::int64_t{args.handle.totals->num_rows}, args.max_rows);
  const std::int64_t warp = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarpSize;
  const std::int64_t num_warps = std::int64_t{gridDim.x} * kThreads / kWarpSize;
  for (std::int64_t row = warp; row < num_rows; row += num_warps) {
    std::byte* grad_row = args.grad_rows + row * row_bytes;
    const bool content = args.handle.src_rank[row] >= 0;
    if (args.grad_weights != nullptr) {
      const float dot =
          content ? dot_rows<Format>(args.saved_rows + row * args.saved_stride, grad_row, row_bytes) : 0.0F;
      if (args.layout.token_major()) {
        for (int i = lane_id(); i < top_k; i += kWarpSize) {
          const bool local = content && args.handle.local_expert_ids[row * top_k + i] >= 0;
          args.grad_weights[row * top_k + i] = local ? dot : 0.0F;
        }
      } else if (lane_id() == 0) {
        args.grad_weights[row] = dot;
      }
    }
    if (!content) continue;
    float weight = 0.0F;
    if (args.layout.token_major()) {
      for (int i = 0; i < top_k; ++i) {
        if (args.handle.local_expert_ids[row * top_k + i] >= 0) {
          weight = __fadd_rn(weight, args.handle.row_weights[row * top_k + i]);
        }
      }
    } else {
      weight = __fadd_rn(0.0F, args.handle.row_weights[row]);  // sums start at +0
    }
    __syncwarp();
    for (std::int64_t at = lane_id(); at < row_bytes / kVectorBytes; at += kWarpSize) {
      float values[Format::kElements];
      Format::unpack(load_vector(grad_row + at * kVectorBytes), values);
#pragma unroll
      for (int e = 0; e < Format::kElements; ++e) values[e] = __fmul_rn(weight, values[e]);
      store_vector(grad_row + at * kVectorBytes, Format::pack(values));
    }
  }
}

}  // namespace

const void* weight_gradient_kernel_address() noexcept { return reinterpret_cast<const void*>(&weight_gradient_kernel); }
const void* scale_rows_kernel_address(DType dtype) noexcept {
  return with_format(dtype,
                     [](auto format) { return reinterpret_cast<const void*>(&scale_rows_kernel<decltype(format)>); });
}

cudaError_t launch_weight_gradients(const WeightGradientArgs& args, cudaStream_t stream) {
  weight_gradient_kernel<<<args.num_blocks, kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t launch_scale_rows(const ScaleRowsArgs& args, cudaStream_t stream) {
  with_format(args.dtype, [&](auto format) {
    scale_rows_kernel<decltype(format)><<<args.num_blocks, kThreads, 0, stream>>>(args);
  });
  return cudaGetLastError();
}

}  // namespace epistle::cuda
