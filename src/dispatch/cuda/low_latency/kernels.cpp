#include <algorithm>

#include "dispatch/cuda/low_latency/line_launch.hpp"

namespace epistle::cuda {

// Each in the file of its kernel.
const void* line_dispatch_kernel_address(bool quantises, bool placed) noexcept;
std::int64_t line_dispatch_shared_bytes(const DispatchLayout& layout) noexcept;
const void* line_combine_kernel_address(DType dtype, bool aligned) noexcept;
const void* line_complete_kernel_address() noexcept;
std::int64_t line_complete_shared_bytes(const DispatchLayout& layout) noexcept;

std::int64_t line_shared_bytes(const DispatchLayout& layout) noexcept {
  return std::max(line_dispatch_shared_bytes(layout), line_complete_shared_bytes(layout));
}

cudaError_t load_line_kernels(const LinePlan& lines) {
  for (const DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32}) {
    for (const bool aligned : {false, true}) {
      cudaFuncAttributes attributes;
      const cudaError_t error = cudaFuncGetAttributes(&attributes, line_combine_kernel_address(dtype, aligned));
      if (error != cudaSuccess) return error;
    }
  }
  if (!lines.routes) return cudaSuccess;
  for (const bool placed : {false, true}) {
    const cudaError_t error = allow_all_shared_memory(line_dispatch_kernel_address(lines.quantises, placed));
    if (error != cudaSuccess) return error;
  }
  return allow_all_shared_memory(line_complete_kernel_address());
}

}  // namespace epistle::cuda
