// Rows of bf16 become fp8 in this rank's own memory, before a transport moves them as it would move rows that were fp8
// from the start. (Dispatch by lines quantises on the way.)
#include "dispatch/cuda/device/quantise.cuh"
#include "dispatch/cuda/device/signals.cuh"
#include "dispatch/cuda/device/start_kernel.cuh"
#include "dispatch/cuda/engine/kernels.hpp"
#include "dispatch/cuda/engine/launch.hpp"

namespace epistle::cuda {
namespace {

constexpr int kQuantiseThreads = 256;
constexpr int kStoreBytes = 8;
constexpr int kQuantiseWarps = kQuantiseThreads / kWarpSize;

__global__ void __launch_bounds__(kQuantiseThreads) quantise_kernel(const __grid_constant__ QuantiseArgs args) {
  __shared__ QuantisedPart parts[kQuantiseWarps];
  if (args.early_start) wait_for_kernel_before();
  QuantisedPart& part = parts[threadIdx.x / kWarpSize];
  const auto hidden = static_cast<int>(args.hidden);
  const int per_row = (hidden + kQuantisedElements - 1) / kQuantisedElements;
  const std::int64_t count = args.num_tokens * per_row;
  const bool aligned = common_width(reinterpret_cast<std::uint64_t>(args.rows),
                                    static_cast<std::uint64_t>(args.row_stride), 0) == kVectorBytes;
  const std::int64_t first = std::int64_t{blockIdx.x} * kQuantiseWarps + threadIdx.x / kWarpSize;
  for (std::int64_t unit = first; unit < count; unit += std::int64_t{gridDim.x} * kQuantiseWarps) {
    const std::int64_t token = unit / per_row;
    const auto in_row = static_cast<int>(unit - token * per_row);
    const int begin = in_row * kQuantisedElements;
    const int num_elements = min(kQuantisedElements, hidden - begin);
    quantise(args.rows + token * args.row_stride + std::int64_t{begin} * 2, num_elements, aligned, args.powers_of_two,
             part);
    std::byte* row = args.out_rows + token * args.hidden + begin;
    // Rows of bf16 are multiples of 16 bytes, these of 8.
    for (int at = lane_id() * kStoreBytes; at < num_elements; at += kWarpSize * kStoreBytes) {
      *reinterpret_cast<uint2*>(row + at) = *reinterpret_cast<const uint2*>(part.elements + at);
    }
    std::byte* scales = args.out_scales + token * args.scale_bytes;
    const int scale = in_row * kQuantisedBlocks + lane_id();
    if (args.scale_format == ScaleFormat::kFp32) {
      if (lane_id() < kQuantisedBlocks && scale * 4 < args.scale_bytes) {
        reinterpret_cast<std::uint32_t*>(scales)[scale] = part.scales[lane_id()];
      }
    } else {
      // The last part of a row also fills its scales up to a whole word.
      const bool is_last = in_row == per_row - 1;
      const bool is_scale = lane_id() < kQuantisedBlocks;
      const std::uint32_t bits = is_scale ? part.scales[lane_id()] : 0U;
      if ((is_scale || is_last) && scale < args.scale_bytes) {
        scales[scale] = static_cast<std::byte>(bits >> fp8::kMantissaBits);
      }
    }
    __syncwarp();
  }
}

}  // namespace

const void* quantise_kernel_address() noexcept { return reinterpret_cast<const void*>(&quantise_kernel); }

cudaError_t launch_quantise(const QuantiseArgs& args, cudaStream_t stream) {
  return start_kernel(quantise_kernel, {args.num_blocks, kQuantiseThreads}, args.early_start, args, stream);
}

}  // namespace epistle::cuda
