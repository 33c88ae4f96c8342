#include <initializer_list>

#include "dispatch/cuda/launch.hpp"

namespace epistle::cuda {

// Each in the file of its kernel.
const void* prepare_kernel_address() noexcept;
const void* move_kernel_address() noexcept;
const void* sum_kernel_address(DType dtype) noexcept;
const void* weight_gradient_kernel_address() noexcept;
const void* scale_rows_kernel_address(DType dtype) noexcept;

cudaError_t load_kernels(int prepare_shared_bytes) {
  cudaFuncAttributes attributes;
  for (const void* kernel :
       {prepare_kernel_address(), move_kernel_address(), sum_kernel_address(DType::kBf16),
        sum_kernel_address(DType::kFp16), sum_kernel_address(DType::kFp32), weight_gradient_kernel_address(),
        scale_rows_kernel_address(DType::kBf16), scale_rows_kernel_address(DType::kFp16),
        scale_rows_kernel_address(DType::kFp32)}) {
    const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
    if (error != cudaSuccess) return error;
  }
  return cudaFuncSetAttribute(prepare_kernel_address(), cudaFuncAttributeMaxDynamicSharedMemorySize,
                              prepare_shared_bytes);
}

}  // namespace epistle::cuda
