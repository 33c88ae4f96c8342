// Where rows lie that cross from one domain to another: a section of what a rank sends, and one of what lands.
#pragma once

#include <cstdint>
#include <memory>

#include "dispatch/link/rank_memory.hpp"
#include "group/domain_link.hpp"
#include "group/group_impl.hpp"
#include "layout/buffer_plan.hpp"

namespace epistle {

/// Puts the bytes of these sections into `bytes`: kSendRows, kSendScales, kStageRows and kStageScales for the (token,
/// domain) pairs of `demand`. They hold records of `record_bytes` each in prepare, rows and their scales after that,
/// and on the way back sums and gradients of the weights.
void set_link_sections(SectionBytes& bytes, const DispatchLayout& layout, const RowDemand& demand,
                       std::int64_t record_bytes) noexcept;

/// Sets the largest numbers of pairs that a rank sends and is sent.
void set_largest_pairs(RowDemand& demand, const DispatchLayout& layout) noexcept;

/// What is put on a link.
enum class LinkRows : std::int32_t { kOfHost, kOfGpu };

/// Collective: to the ranks of other domains, over the network where they are on other hosts, or where
/// EPISTLE_DOMAIN_LINK asks for it. Rows of GPUs: over what reaches their memory, where it can.
[[nodiscard]] std::unique_ptr<DomainLink> open_domain_link(GroupImpl& group, const SymmetricRegion& region,
                                                           LinkRows rows = LinkRows::kOfHost);

/// Collective: tells the link what of this rank's memory others may put to.
void expose_landing_places(DomainLink& link, const BufferPlan& plan, const RankMemory& memory);

}  // namespace epistle
