#include "dispatch/link/link_memory.hpp"

#include <algorithm>

#include "fabric/fabric_link.hpp"

namespace epistle {

void set_link_sections(SectionBytes& bytes, const DispatchLayout& layout, const RowDemand& demand,
                       std::int64_t record_bytes) noexcept {
  // A rank packs what it sends in dispatch and what it returns in combine, and the other way round.
  const std::int64_t num_rows = std::max(demand.send_rows, demand.receive_rows);
  const std::int64_t row_bytes = std::max(layout.widest_row_bytes(), record_bytes);
  const std::int64_t gradient_bytes = layout.params().top_k * static_cast<std::int64_t>(sizeof(float));
  const std::int64_t beside_bytes = std::max(layout.params().scale_bytes, gradient_bytes);
  bytes[BufferSection::kSendRows] = num_rows * row_bytes;
  bytes[BufferSection::kStageRows] = num_rows * row_bytes;
  bytes[BufferSection::kSendScales] = num_rows * beside_bytes;
  bytes[BufferSection::kStageScales] = num_rows * beside_bytes;
}

void set_largest_pairs(RowDemand& demand, const DispatchLayout& layout) noexcept {
  demand.send_rows = layout.params().max_tokens * layout.max_domains_per_token();
  demand.receive_rows = layout.params().max_tokens * layout.num_domains();
}

std::unique_ptr<DomainLink> open_domain_link(GroupImpl& group, const SymmetricRegion& region, LinkRows rows) {
  if (!takes_fabric_links(group)) return group.open_link(region);
  FabricLinkOptions options{.request = fabric_request(group)};
  options.request.gpu_memory = rows == LinkRows::kOfGpu;
  return make_fabric_link(group, region, options);
}

void expose_landing_places(DomainLink& link, const BufferPlan& plan, const RankMemory& memory) {
  for (const BufferSection section : {BufferSection::kStageRows, BufferSection::kStageScales}) {
    link.expose(plan.section_offset(section), memory.committed_bytes(section));
  }
}

}  // namespace epistle
