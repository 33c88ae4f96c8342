#include "dispatch/host/engine/sizes.hpp"

namespace epistle::host {

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

BufferPlan plan_buffers(const ResolvedConfig& config, int num_ranks, const PlanRules& rules) {
  const LayoutParams params = to_layout_params(config, num_ranks);
  constexpr std::int64_t kGenerations = 2;
  const std::int64_t counts_bytes = DispatchLayout(params).counts_entries() * DispatchLayout::kCountBytes;
  return {rules, params, {.control_bytes = kGenerations * counts_bytes}};
}

}  // namespace epistle::host
