#include <initializer_list>

#include "dispatch/cuda/engine/launch.hpp"

namespace epistle::cuda {

// Each in the file of its kernel.
const void* prepare_kernel_address(bool placed, bool few) noexcept;
const void* refuse_kernel_address() noexcept;
const void* quantise_kernel_address() noexcept;
const void* move_kernel_address(bool bulk, bool columns) noexcept;
std::int64_t move_shared_bytes() noexcept;
const void* sum_kernel_address(DType dtype) noexcept;
const void* sum_bulk_kernel_address(DType dtype, SumKind kind) noexcept;
std::int64_t sum_bulk_shared_bytes() noexcept;
const void* weight_gradient_kernel_address() noexcept;
const void* scale_rows_kernel_address(DType dtype) noexcept;
const void* start_copies_kernel_address() noexcept;
const void* finish_copies_kernel_address() noexcept;
const void* find_runs_kernel_address() noexcept;
const void* pack_kernel_address() noexcept;

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

cudaError_t load_kernels(int compute_major) {
  cudaFuncAttributes attributes;
  for (const void* kernel : {prepare_kernel_address(false, false),
                             prepare_kernel_address(true, false),
                             prepare_kernel_address(false, true),
                             prepare_kernel_address(true, true),
                             refuse_kernel_address(),
                             quantise_kernel_address(),
                             move_kernel_address(false, false),
                             move_kernel_address(false, true),
                             move_kernel_address(true, false),
                             move_kernel_address(true, true),
                             sum_kernel_address(DType::kBf16),
                             sum_kernel_address(DType::kFp16),
                             sum_kernel_address(DType::kFp32),
                             weight_gradient_kernel_address(),
                             scale_rows_kernel_address(DType::kBf16),
                             scale_rows_kernel_address(DType::kFp16),
                             scale_rows_kernel_address(DType::kFp32),
                             start_copies_kernel_address(),
                             finish_copies_kernel_address(),
                             find_runs_kernel_address(),
                             pack_kernel_address()}) {
    const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
    if (error != cudaSuccess) return error;
  }
  const auto raise = [](const void* kernel, std::int64_t num_bytes) {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(num_bytes));
  };
  for (const bool placed : {false, true}) {
    for (const bool few : {false, true}) {
      const cudaError_t error = allow_all_shared_memory(prepare_kernel_address(placed, few));
      if (error != cudaSuccess) return error;
    }
  }
  // Bulk copies need the shared memory of the GPUs that have them.
  if (compute_major < kFirstMajorWithBulkCopies) return cudaSuccess;
  for (const DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32}) {
    for (const SumKind kind : {SumKind::kTokenRows, SumKind::kFlatRows, SumKind::kStagedRows}) {
      const void* const kernel = sum_bulk_kernel_address(dtype, kind);
      if (const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel); error != cudaSuccess) return error;
      if (const cudaError_t error = raise(kernel, sum_bulk_shared_bytes()); error != cudaSuccess) return error;
    }
  }
  for (const bool columns : {false, true}) {
    const cudaError_t error = raise(move_kernel_address(true, columns), move_shared_bytes());
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace epistle::cuda
