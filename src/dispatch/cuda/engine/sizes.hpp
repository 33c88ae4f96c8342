// How large everything of a dispatcher on a GPU is. Pure, and without CUDA: what is asked here before there is a GPU is
// what is taken there.
#pragma once

#include <cstdint>
#include <vector>

#include "epistle/dispatcher_info.hpp"

#include "dispatch/call/resolved_config.hpp"
#include "dispatch/cuda/device/device_control.hpp"
#include "dispatch/cuda/device/device_types.hpp"
#include "dispatch/cuda/device/few_tokens.hpp"
#include "dispatch/cuda/engine/buffer_carver.hpp"
#include "layout/buffer_plan.hpp"

namespace epistle::cuda {

/// What the buffers depend on beside the configuration: the same on all ranks.
struct DeviceShape {
  int num_ranks = 1;
  std::int64_t page_bytes = std::int64_t{2} << 20;  ///< granularity of memory that peers can address
  int sm_share = 132;                               ///< SMs of a GPU for each of its ranks
};

/// Blocks that count in prepare: enough that each has few tokens, few enough that all can read all counts quickly.
[[nodiscard]] int count_blocks_for(const DeviceShape& shape) noexcept;
[[nodiscard]] DeviceControl control_of(const ResolvedConfig& config, const DeviceShape& shape) noexcept;
/// Behind it, where rows are those of tokens. (Rows of experts have places only when all assignments are counted.)
[[nodiscard]] FewTokens few_tokens_of(const ResolvedConfig& config, const DeviceShape& shape) noexcept;

/// What every dispatcher on a GPU needs. Room for gradients of the weights is committed with that for the rows.
class DeviceRules : public PlanRules {
 public:
  [[nodiscard]] bool combines_per_rank(const DispatchLayout& layout) const noexcept override;
  [[nodiscard]] SectionBytes content_bytes(const DispatchLayout& layout,
                                           const RowDemand& demand) const noexcept override;
  [[nodiscard]] RowDemand max_demand(const DispatchLayout& layout) const noexcept override;
  [[nodiscard]] RowDemand initial_demand(const DispatchLayout& layout) const noexcept override;
};

[[nodiscard]] BufferPlan plan_buffers(const ResolvedConfig& config, const DeviceShape& shape, const PlanRules& rules);

/// The arrays of one handle, in one allocation.
void carve_handle(BufferCarver& carver, const DispatchLayout& layout, HandleArrays& arrays) noexcept;
/// The tables of a placement, where experts are placed.
void carve_placement(BufferCarver& carver, const ResolvedConfig& config, int num_ranks, SlotTables& tables) noexcept;
/// Room for the rows of a call and their scales, where rows become fp8 on their way.
void carve_quantised(BufferCarver& carver, const ResolvedConfig& config, std::byte*& rows, std::byte*& scales) noexcept;
/// Pinned memory of a handle, before its summary, into which the host copies what it wants to see of the device's.
inline constexpr std::int64_t kProbeBytes = 16;
/// Host memory in which the device tells of one handle.
[[nodiscard]] std::int64_t summary_bytes(int num_ranks) noexcept;
/// Both, in cache lines of their own.
[[nodiscard]] std::int64_t told_bytes(int num_ranks) noexcept;
/// What a rank takes besides its buffers.
[[nodiscard]] std::vector<MemorySection> own_memory(const ResolvedConfig& config, int num_ranks);

}  // namespace epistle::cuda
