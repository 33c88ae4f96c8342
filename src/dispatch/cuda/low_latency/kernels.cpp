#include "dispatch/cuda/low_latency/line_launch.hpp"

namespace epistle::cuda {

// Each in the file of its kernel.
const void* line_dispatch_kernel_address(bool quantises) noexcept;
std::int64_t line_dispatch_shared_bytes(const DispatchLayout& layout) noexcept;
const void* line_combine_kernel_address(DType dtype, bool aligned) noexcept;
const void* line_complete_kernel_address() noexcept;
std::int64_t line_complete_shared_bytes(const DispatchLayout& layout) noexcept;

cudaError_t load_line_kernels(const LinePlan& lines, const DispatchLayout& layout) {
  cudaFuncAttributes attributes;
  for (const DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32}) {
    for (const bool aligned : {false, true}) {
      const cudaError_t error = cudaFuncGetAttributes(&attributes, line_combine_kernel_address(dtype, aligned));
      if (error != cudaSuccess) return error;
    }
  }
  if (!lines.routes) return cudaSuccess;
  const auto load = [&](const void* kernel, std::int64_t shared_bytes) {
    const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
    if (error != cudaSuccess) return error;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  };
  const cudaError_t error = load(line_dispatch_kernel_address(lines.quantises), line_dispatch_shared_bytes(layout));
  return error != cudaSuccess ? error : load(line_complete_kernel_address(), line_complete_shared_bytes(layout));
}

}  // namespace epistle::cuda
