// CudaEngine: the memory that its ranks share, and what each of them needs to use it. Taken when a dispatcher is made,
// and again where the mask of its group has changed (cuda_masks.cpp).
#include <algorithm>
#include <utility>

#include "dispatch/cuda/engine/cuda_engine.hpp"
#include "dispatch/cuda/engine/sizes.hpp"
#include "gpu/cuda_error.hpp"

namespace epistle::cuda {
namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;

/// Where copy `idx` of what a lease shows lies on this rank.
RowBuffer place_buffer(const EngineContext& context, std::int32_t idx) {
  RowBuffer buffer;
  buffer.rows = context.own_section(BufferSection::kReceiveRows, idx);
  buffer.scales = context.own_section(BufferSection::kReceiveScales, idx);
  buffer.outputs = context.own_section(BufferSection::kCombineRows, idx);
  buffer.memory = context.heap;
  return buffer;
}

}  // namespace

void CudaEngine::take_memory() {
  share_memory();
  buffers_ = RowBufferPool(context_.config, [this](std::int32_t idx) { return place_buffer(context_, idx); });
  // Also keeps every rank until all have their memory: taking some may wait for the device.
  (void)group_->agree(kGpuSetUp, Phase::kCreate, attempt([&] { take_own_memory(); }));
  if (!context_.heap->reaches_all()) relay_ = std::make_unique<HostRelay>(context_);
}

void CudaEngine::share_memory() {
  const BufferPlan& plan = context_.plan;
  context_.heap = std::make_shared<SymmetricHeap>(*group_, context_.device, plan.reserved_bytes());
  // What does not depend on any demand: the control section, and lines.
  const SectionBytes fixed = plan.section_bytes(RowDemand{});
  std::vector<HeapRange> fixed_ranges;
  for (int peer = 0; peer < context_.num_ranks(); ++peer) {
    if (group_->is_masked(peer)) continue;
    for (const BufferSection section : kBufferSections) {
      if (fixed[section] == 0) continue;
      fixed_ranges.push_back({peer, plan.section_offset(section), fixed[section], is_mirrored(plan, section)});
    }
  }
  context_.heap->commit(fixed_ranges);
  grow(std::vector<RowDemand>(demands_.size(), plan.initial_demand()));
}

/// What no other rank sees; may fail on this rank alone.
void CudaEngine::take_own_memory() {
  const DeviceGuard guard(context_.device);
  const ResolvedConfig& config = context_.config;
  DeviceGroup& devices = context_.device_group;
  const int num_ranks = context_.num_ranks();
  local_memory_ = context_.own_memory.carve([&](BufferCarver& carver) {
    carve_local(carver, config, num_ranks, devices);
    carve_quantised(carver, config, quantised_rows_, quantised_scales_);
  });
  devices.rank = context_.rank();
  devices.num_ranks = num_ranks;
  devices.num_masked = static_cast<std::int32_t>(group_->masked_ranks().size());
  std::fill(std::begin(devices.masked), std::end(devices.masked), 0U);
  for (const int masked : group_->masked_ranks()) devices.masked[masked / 32] |= 1U << (masked % 32);
  devices.control = context_.control;
  devices.host = reinterpret_cast<HostControl*>(host_control_.get());
  devices.early_start = context_.has_bulk_copies() && !context_.shares_gpu;
  devices.timeout_ns = static_cast<std::uint64_t>(group_->timeout().count()) * kNsPerMs;
  for (const BufferSection section : kBufferSections) {
    devices.section_offset[static_cast<int>(section)] = context_.plan.section_offset(section);
    devices.section_stride[static_cast<int>(section)] = context_.plan.section_stride(section);
  }
  for (int peer = 0; peer < num_ranks; ++peer) devices.base[peer] = context_.heap->base(peer);
  // All in advance: making one later would be an allocation in a call, and may wait for the device, where a peer's
  // kernel may wait for this rank.
  const auto told = std::make_shared<PinnedMemory>(told_bytes(context_.layout()) * config.max_handles);
  for (std::int64_t idx = 0; idx < config.max_handles; ++idx) {
    handles_.push_back(std::make_shared<CudaHandleState>(context_, told, idx * told_bytes(context_.layout())));
  }
}

/// Collective; `demands` by rank, the same on all ranks.
void CudaEngine::grow(const std::vector<RowDemand>& demands) {
  const BufferPlan& plan = context_.plan;
  std::vector<HeapRange> ranges;
  std::vector<RowDemand> raised = demands_;
  for (int peer = 0; peer < context_.num_ranks(); ++peer) {
    if (group_->is_masked(peer)) continue;
    const auto idx = static_cast<std::size_t>(peer);
    raised[idx].raise_to(demands[idx]);
    const SectionBytes have = plan.section_bytes(demands_[idx]);
    const SectionBytes need = plan.section_bytes(raised[idx]);
    for (const BufferSection section : kBufferSections) {
      if (need[section] <= have[section]) continue;
      for (std::int32_t copy = 0; copy < plan.section_copies(section); ++copy) {
        ranges.push_back({peer, plan.section_offset(section) + copy * plan.section_stride(section) + have[section],
                          need[section] - have[section], is_mirrored(plan, section)});
      }
    }
  }
  if (!ranges.empty()) context_.heap->commit(ranges);
  demands_ = std::move(raised);
}

}  // namespace epistle::cuda
