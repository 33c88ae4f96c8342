// How large everything of a dispatcher on a GPU is. Pure, and without CUDA: what is asked here before there is a GPU is
// what is taken there.
#pragma once

#include <cstdint>
#include <string_view>
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
/// What the calls of a rank count and tell.
void carve_local(BufferCarver& carver, const ResolvedConfig& config, int num_ranks, DeviceGroup& group) noexcept;
/// Pinned memory of a handle, before its summary, into which the host copies what it wants to see of the device's.
inline constexpr std::int64_t kProbeBytes = 16;
/// Host memory in which the device tells of one handle.
[[nodiscard]] std::int64_t summary_bytes(const DispatchLayout& layout) noexcept;
/// Both, in cache lines of their own.
[[nodiscard]] std::int64_t told_bytes(const DispatchLayout& layout) noexcept;
/// What a rank takes besides its buffers.
[[nodiscard]] std::vector<MemorySection> own_memory(const ResolvedConfig& config, const MemoryQuery& query);
/// A section that is taken when the dispatcher is created, whole; what is private by DeviceSource.
[[nodiscard]] MemorySection fixed_section(std::string_view name, MemoryKind kind, std::int64_t num_bytes) noexcept;

// ---- Where ranks are on several hosts

/// Whether mirrors of ranks of other hosts have it: prepare tells them something there, or the backward pass looks for
/// gradients of the weights, unless these cross like rows.
[[nodiscard]] bool is_mirrored(const BufferPlan& plan, BufferSection section) noexcept;

/// What the host writes for the ranks of other hosts before a run of prepare.
struct RelayWords {
  std::uint64_t* completed = nullptr;  ///< [1] calls, as the device counts them
  std::uint32_t* prepared = nullptr;   ///< [1] epoch of the prepare of a handle, likewise
  std::uint64_t* ready = nullptr;      ///< [num_ranks]
  std::uint64_t* done = nullptr;       ///< [num_ranks]
  std::uint64_t* counts = nullptr;     ///< [num_ranks, count_blocks, count_columns]
};
void carve_relay_words(BufferCarver& carver, const DeviceControl& control, RelayWords& words) noexcept;
/// Host memory of what a rank tells ranks of other hosts in prepare, and is told.
[[nodiscard]] BufferPlan plan_relay(const DispatchLayout& layout);
/// Counters of tokens in runs of prepare that are not the last: nobody reads them.
[[nodiscard]] std::int64_t relay_counter_bytes(const ResolvedConfig& config) noexcept;
/// Mirrors of ranks of other hosts, and what carries across what stands there. Nothing on one host.
[[nodiscard]] std::vector<MemorySection> relay_memory(const ResolvedConfig& config, const MemoryQuery& query,
                                                      const PlanRules& rules);

}  // namespace epistle::cuda
