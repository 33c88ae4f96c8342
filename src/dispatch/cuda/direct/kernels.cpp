#include "dispatch/cuda/direct/kernels.hpp"

namespace epistle::cuda {
namespace {

/// Loads it, too.
cudaError_t allow_shared_memory(const void* kernel, std::int64_t num_bytes) {
  if (const cudaError_t error = load_kernels({kernel}); error != cudaSuccess) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(num_bytes));
}

}  // namespace

cudaError_t load_direct_kernels(int compute_major) {
  const cudaError_t error =
      load_kernels({move_kernel_address(false, false), move_kernel_address(false, true),
                    move_kernel_address(true, false), move_kernel_address(true, true), sum_kernel_address(DType::kBf16),
                    sum_kernel_address(DType::kFp16), sum_kernel_address(DType::kFp32)});
  // Bulk copies need the shared memory of the GPUs that have them.
  if (error != cudaSuccess || compute_major < kFirstMajorWithBulkCopies) return error;
  for (const DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32}) {
    for (const SumKind kind : {SumKind::kTokenRows, SumKind::kFlatRows, SumKind::kStagedRows}) {
      const cudaError_t failed = allow_shared_memory(sum_bulk_kernel_address(dtype, kind), sum_bulk_shared_bytes());
      if (failed != cudaSuccess) return failed;
    }
  }
  for (const bool columns : {false, true}) {
    const cudaError_t failed = allow_shared_memory(move_kernel_address(true, columns), move_shared_bytes());
    if (failed != cudaSuccess) return failed;
  }
  return cudaSuccess;
}

}  // namespace epistle::cuda
