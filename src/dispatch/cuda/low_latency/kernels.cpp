#include "dispatch/cuda/low_latency/kernels.hpp"

#include <algorithm>

namespace epistle::cuda {

std::int64_t line_shared_bytes(const DispatchLayout& layout) noexcept {
  return std::max(line_dispatch_shared_bytes(layout), line_complete_shared_bytes(layout));
}

cudaError_t load_line_kernels(const LinePlan& lines) {
  for (const DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32}) {
    for (const bool aligned : {false, true}) {
      for (const void* kernel :
           {combine_experts_address(dtype, aligned), combine_ranks_address(dtype, false, aligned, false),
            combine_ranks_address(dtype, false, aligned, true), combine_ranks_address(dtype, true, aligned, false),
            combine_ranks_address(dtype, true, aligned, true)}) {
        const cudaError_t error = allow_all_shared_memory(kernel);
        if (error != cudaSuccess) return error;
      }
    }
  }
  if (!lines.routes) return cudaSuccess;
  for (const bool placed : {false, true}) {
    const cudaError_t error = allow_all_shared_memory(line_dispatch_kernel_address(lines.quantises, placed));
    if (error != cudaSuccess) return error;
  }
  return allow_all_shared_memory(line_complete_kernel_address());
}

cudaError_t load_extra_kernels(const LinePlan& lines) {
  for (const DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32}) {
    for (const bool aligned : {false, true}) {
      const cudaError_t error = allow_all_shared_memory(marked_combine_address(dtype, aligned));
      if (error != cudaSuccess) return error;
    }
  }
  for (const bool placed : {false, true}) {
    const cudaError_t error = allow_all_shared_memory(extra_dispatch_kernel_address(lines.quantises, placed));
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

namespace {

/// Whether every row given and every row of the result begins at a multiple of a unit.
bool is_aligned(const LineCombineArgs& args) {
  const SumArgs& sum = args.sum;
  const std::uint64_t bits = reinterpret_cast<std::uint64_t>(sum.rows) | reinterpret_cast<std::uint64_t>(sum.out) |
                             static_cast<std::uint64_t>(sum.out_stride) |
                             static_cast<std::uint64_t>(args.lines.combine_row_bytes);
  return bits % kUnitBytes == 0;
}

}  // namespace

cudaError_t launch_marked_combine(const MarkedCombineArgs& args, cudaStream_t stream) {
  return launch_marked(args, is_aligned(args), stream);
}

cudaError_t launch_line_combine(const LineCombineArgs& args, cudaStream_t stream) {
  const bool aligned = is_aligned(args);
  return args.sum.layout.can_combine_per_rank() ? launch_combine_ranks(args, aligned, stream)
                                                : launch_combine_experts(args, aligned, stream);
}

}  // namespace epistle::cuda
