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

/// What a rank says of its buffers in an exchange: each is its own choice.
struct PublishedBuffers {
  static constexpr std::int32_t kNone = -1;
  std::int32_t used = 0;          ///< by the call
  std::int32_t promised = kNone;  ///< free until the next call that receives rows: others may write there at once
};

/// Where in kControl they are, behind the counts.
[[nodiscard]] std::int64_t published_buffers_offset(const DispatchLayout& layout, std::uint64_t exchange) noexcept;

/// `most_sources`: see EngineSizes.
[[nodiscard]] BufferPlan plan_buffers(const ResolvedConfig& config, int num_ranks, const PlanRules& rules,
                                      std::int64_t most_sources = 1);

}  // namespace epistle::host
