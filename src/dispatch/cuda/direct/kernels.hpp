// The kernels of `direct`, for those who load them. Each is defined in the file of its kernel.
#pragma once

#include <cstdint>

#include "dispatch/cuda/direct/direct_launch.hpp"

namespace epistle::cuda {

[[nodiscard]] const void* move_kernel_address(bool bulk, bool columns) noexcept;
/// Shared memory of a block that moves rows by bulk copies.
[[nodiscard]] std::int64_t move_shared_bytes() noexcept;
[[nodiscard]] const void* sum_kernel_address(DType dtype) noexcept;
[[nodiscard]] const void* sum_bulk_kernel_address(DType dtype, SumKind kind) noexcept;
[[nodiscard]] std::int64_t sum_bulk_shared_bytes() noexcept;

}  // namespace epistle::cuda
