// The kernels that every dispatcher uses, for those who load them. Each is defined in the file of its kernel.
#pragma once

#include "epistle/types.hpp"

namespace epistle::cuda {

[[nodiscard]] const void* prepare_kernel_address(bool placed, bool few) noexcept;
[[nodiscard]] const void* refuse_kernel_address() noexcept;
[[nodiscard]] const void* quantise_kernel_address() noexcept;
[[nodiscard]] const void* weight_gradient_kernel_address() noexcept;
[[nodiscard]] const void* scale_rows_kernel_address(DType dtype) noexcept;

}  // namespace epistle::cuda
