// How large everything of a dispatcher on a GPU is. Pure, and without CUDA: what is asked here before there is a GPU is
// what is taken there.
#pragma once

#include <cstdint>

#include "epistle/dispatcher_info.hpp"

#include "dispatch/call/resolved_config.hpp"
#include "dispatch/cuda/device/device_control.hpp"
#include "dispatch/cuda/device/device_types.hpp"
#include "dispatch/cuda/engine/buffer_carver.hpp"
#include "layout/dispatch_layout.hpp"

namespace epistle::cuda {

/// What the layout depends on beside the configuration: the same on all ranks.
struct DeviceShape {
  int num_ranks = 1;
  std::int64_t page_bytes = std::int64_t{2} << 20;  ///< granularity of memory that peers can address
  int sm_share = 132;                               ///< SMs of a GPU for each of its ranks
};

/// Blocks that count in prepare: enough that each has few tokens, few enough that all can read all counts quickly.
[[nodiscard]] int count_blocks_for(const DeviceShape& shape) noexcept;
[[nodiscard]] DeviceControl control_of(const ResolvedConfig& config, const DeviceShape& shape) noexcept;
[[nodiscard]] DispatchLayout layout_of(const ResolvedConfig& config, const DeviceShape& shape, Transport transport);

/// The arrays of one handle, in one allocation.
void carve_handle(BufferCarver& carver, const DispatchLayout& layout, HandleArrays& arrays) noexcept;
/// Host memory in which the device tells of one handle.
[[nodiscard]] std::int64_t summary_bytes(int num_ranks) noexcept;

/// Everything that a rank takes.
[[nodiscard]] MemoryPlan device_memory_plan(const ResolvedConfig& config, const DeviceShape& shape,
                                            Transport transport);

}  // namespace epistle::cuda
