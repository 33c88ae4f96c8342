// The kernels of `low_latency`, for those who load and choose them. Each is defined in the file of its kernel.
#pragma once

#include <cstdint>

#include "dispatch/cuda/low_latency/line_launch.hpp"

namespace epistle::cuda {

[[nodiscard]] const void* line_dispatch_kernel_address(bool quantises, bool placed) noexcept;
[[nodiscard]] const void* extra_dispatch_kernel_address(bool quantises, bool placed) noexcept;
[[nodiscard]] std::int64_t line_dispatch_shared_bytes(const DispatchLayout& layout) noexcept;
[[nodiscard]] const void* line_complete_kernel_address() noexcept;
[[nodiscard]] std::int64_t line_complete_shared_bytes(const DispatchLayout& layout) noexcept;

// `aligned`: every row given and every row of the result begins at a multiple of a unit.
[[nodiscard]] const void* combine_experts_address(DType dtype, bool aligned) noexcept;
[[nodiscard]] const void* combine_ranks_address(DType dtype, bool wide, bool aligned, bool token_rows) noexcept;
[[nodiscard]] const void* marked_combine_address(DType dtype, bool aligned) noexcept;
[[nodiscard]] cudaError_t launch_combine_experts(const LineCombineArgs& args, bool aligned, cudaStream_t stream);
[[nodiscard]] cudaError_t launch_combine_ranks(const LineCombineArgs& args, bool aligned, cudaStream_t stream);
[[nodiscard]] cudaError_t launch_marked(const MarkedCombineArgs& args, bool aligned, cudaStream_t stream);

}  // namespace epistle::cuda
