#include "dispatch/host/engine/sizes.hpp"

#include "dispatch/host/engine/published_places.hpp"

namespace epistle::host {
namespace {

/// Of what stands in kControl.
constexpr std::int64_t kNumGenerations = DispatchLayout::kNumGenerations;

constexpr std::int64_t all_counts_bytes(const DispatchLayout& layout) noexcept {
  return kNumGenerations * layout.counts_entries() * DispatchLayout::kCountBytes;
}

}  // namespace

SectionBytes HostRules::content_bytes(const DispatchLayout& layout, const RowDemand& demand) const noexcept {
  SectionBytes bytes = PlanRules::content_bytes(layout, demand);
  bytes[BufferSection::kRecords] = demand.output_rows * layout.record_bytes();
  return bytes;
}

RowDemand HostRules::initial_demand(const DispatchLayout& layout) const noexcept {
  RowDemand demand = PlanRules::initial_demand(layout);
  demand.grad_rows = 0;  // committed when somebody asks for them
  return demand;
}

SectionBytes PublishedInputRules::content_bytes(const DispatchLayout& layout, const RowDemand& demand) const noexcept {
  SectionBytes bytes = HostRules::content_bytes(layout, demand);
  bytes[BufferSection::kSendRows] = demand.tokens * layout.widest_row_bytes();
  bytes[BufferSection::kSendScales] = demand.tokens * layout.params().scale_bytes;
  return bytes;
}

SectionBytes PublishedSetsRules::content_bytes(const DispatchLayout& layout, const RowDemand& demand) const noexcept {
  SectionBytes bytes = HostRules::content_bytes(layout, demand);
  bytes[BufferSection::kRecords] = 0;  // receivers derive what they must know of their rows
  PublishedPlaces(layout).add_to(bytes);
  return bytes;
}

std::int64_t published_buffers_offset(const DispatchLayout& layout, std::uint64_t exchange) noexcept {
  return all_counts_bytes(layout) + static_cast<std::int64_t>(exchange % DispatchLayout::kNumGenerations) *
                                        static_cast<std::int64_t>(sizeof(PublishedBuffers));
}

BufferPlan plan_buffers(const ResolvedConfig& config, int num_ranks, const PlanRules& rules,
                        std::int64_t most_sources) {
  const LayoutParams params = to_layout_params(config, num_ranks);
  constexpr std::int64_t kAllPublishedBytes = kNumGenerations * static_cast<std::int64_t>(sizeof(PublishedBuffers));
  return {
      rules,
      params,
      {.control_bytes = all_counts_bytes(DispatchLayout(params)) + kAllPublishedBytes, .most_sources = most_sources}};
}

}  // namespace epistle::host
