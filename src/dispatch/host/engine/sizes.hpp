// How large the buffers of a dispatcher on the host are.
#pragma once

#include "dispatch/call/resolved_config.hpp"
#include "layout/buffer_plan.hpp"

namespace epistle::host {

/// What every dispatcher on the host needs. One that writes and reads rows where they belong needs nothing else.
class HostRules : public PlanRules {
 public:
  [[nodiscard]] SectionBytes content_bytes(const DispatchLayout& layout,
                                           const RowDemand& demand) const noexcept override;
  [[nodiscard]] RowDemand initial_demand(const DispatchLayout& layout) const noexcept override;
};

/// For one whose ranks lay their whole input out, for others to read.
class PublishedInputRules final : public HostRules {
 public:
  [[nodiscard]] SectionBytes content_bytes(const DispatchLayout& layout,
                                           const RowDemand& demand) const noexcept override;
};

/// For one whose ranks lay out what they send at fixed places, with its routing: see PublishedPlaces.
class PublishedSetsRules final : public HostRules {
 public:
  [[nodiscard]] SectionBytes content_bytes(const DispatchLayout& layout,
                                           const RowDemand& demand) const noexcept override;
};

/// Where in kControl a rank says which of its buffers it uses in an exchange, behind the counts.
[[nodiscard]] std::int64_t published_buffer_offset(const DispatchLayout& layout, std::uint64_t exchange) noexcept;

[[nodiscard]] BufferPlan plan_buffers(const ResolvedConfig& config, int num_ranks, const PlanRules& rules);

}  // namespace epistle::host
