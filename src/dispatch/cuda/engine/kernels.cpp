#include "dispatch/cuda/engine/kernels.hpp"

#include "dispatch/cuda/engine/launch.hpp"

namespace epistle::cuda {

cudaError_t allow_all_shared_memory(const void* kernel) {
  cudaFuncAttributes attributes;
  if (const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel); error != cudaSuccess) return error;
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  int limit_bytes = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&limit_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              limit_bytes - static_cast<int>(attributes.sharedSizeBytes));
}

cudaError_t load_kernels(std::initializer_list<const void*> kernels) {
  cudaFuncAttributes attributes;
  for (const void* kernel : kernels) {
    // Whoever asks for attributes has the kernel loaded.
    if (const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel); error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t load_kernels() {
  for (const bool placed : {false, true}) {
    for (const bool few : {false, true}) {
      const cudaError_t error = allow_all_shared_memory(prepare_kernel_address(placed, few));
      if (error != cudaSuccess) return error;
    }
  }
  return load_kernels({refuse_kernel_address(), quantise_kernel_address(), weight_gradient_kernel_address(),
                       scale_rows_kernel_address(DType::kBf16), scale_rows_kernel_address(DType::kFp16),
                       scale_rows_kernel_address(DType::kFp32)});
}

}  // namespace epistle::cuda
