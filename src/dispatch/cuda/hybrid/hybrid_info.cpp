#include "dispatch/cuda/hybrid/hybrid_info.hpp"

#include "dispatch/call/build_parts.hpp"
#include "dispatch/cuda/direct/direct_info.hpp"
#include "dispatch/cuda/engine/cuda_options.hpp"
#include "dispatch/cuda/engine/sizes.hpp"
#include "dispatch/cuda/hybrid/route_arrays.hpp"
#include "dispatch/link/domain_sums.hpp"
#include "dispatch/link/link_memory.hpp"
#include "group/domain_link.hpp"

namespace epistle::cuda {
namespace {

/// Rows are received where they belong. The sums of what stays in the own domain, and its gradients of the weights,
/// wait on the GPU for those that come back from others. Within one domain it is `direct`.
class HybridRules final : public DeviceRules {
 public:
  [[nodiscard]] bool crosses_domains(const DispatchLayout& layout) const noexcept override {
    return layout.num_domains() > 1;
  }
  [[nodiscard]] SectionBytes content_bytes(const DispatchLayout& layout,
                                           const RowDemand& demand) const noexcept override {
    if (!crosses_domains(layout)) return direct_rules().content_bytes(layout, demand);
    SectionBytes bytes = DeviceRules::content_bytes(layout, demand);
    bytes[BufferSection::kStageRows] = demand.tokens * layout.params().combine_row_bytes;
    bytes[BufferSection::kStageScales] =
        demand.tokens * layout.params().top_k * static_cast<std::int64_t>(sizeof(float));
    return bytes;
  }
};

/// What crosses is packed, and lands in order, on both ends.
class LinkRules final : public PlanRules {
 public:
  [[nodiscard]] bool crosses_domains(const DispatchLayout& layout) const noexcept override {
    return layout.num_domains() > 1;
  }
  [[nodiscard]] SectionBytes content_bytes(const DispatchLayout& layout,
                                           const RowDemand& demand) const noexcept override {
    SectionBytes bytes;
    if (crosses_domains(layout)) set_link_sections(bytes, layout, demand, route_record_bytes(layout.params().top_k));
    return bytes;
  }
  [[nodiscard]] RowDemand max_demand(const DispatchLayout& layout) const noexcept override {
    RowDemand demand;
    if (crosses_domains(layout)) set_largest_pairs(demand, layout);
    return demand;
  }
};

Capabilities hybrid_capabilities() {
  Capabilities can = common_capabilities();
  put_domains_first(can.orders);
  can.quantises = true;
  can.joins_domains = true;
  can.joins_hosts = true;
  can.agrees_on_host = true;
  can.max_ranks = kMaxRanks;
  can.missing = kLackOfCuda;
  can.needs = {"a GPU of sm_80 or later", "GPUs of a host that reach each other's memory", "libfabric, between hosts"};
  return can;
}

/// Host memory that the GPU reads and writes while rows are between links and GPUs, and tables of who passes what on.
std::vector<MemorySection> hybrid_memory(const ResolvedConfig& config, const MemoryQuery& query) {
  const int num_ranks = query.num_ranks;
  std::vector<MemorySection> sections = own_memory(config, query);
  for (const MemorySection& section : relay_memory(config, query, hybrid_rules())) sections.push_back(section);
  if (config.domain_size == 0) return sections;
  const DispatchLayout layout(to_layout_params(config, num_ranks));
  const BufferPlan links = plan_links(config, num_ranks);
  sections.push_back({.name = "rows of links",
                      .kind = MemoryKind::kPinnedHost,
                      .initial_bytes = links.buffer_bytes(links.initial_demand()),
                      .largest_bytes = links.buffer_bytes(links.max_demand())});
  const std::int64_t signal_bytes = kSignalBytes * num_ranks;
  sections.push_back(fixed_section("signals of links", MemoryKind::kPinnedHost, signal_bytes));
  BufferCarver routes(nullptr);
  RouteArrays arrays;
  carve_routes(routes, layout, arrays);
  BufferCarver places(nullptr);
  PlaceArrays place_arrays;
  carve_places(places, layout, place_arrays);
  sections.push_back(fixed_section("routes", MemoryKind::kPrivate, routes.num_bytes()));
  sections.push_back(fixed_section("routes", MemoryKind::kPinnedHost, routes.num_bytes() + places.num_bytes()));
  return sections;
}

std::optional<std::string> cannot_sum(const ResolvedConfig& config, int num_ranks) {
  return cannot_sum_over_domains(config, num_ranks, Device::kCuda);
}

}  // namespace

const PlanRules& hybrid_rules() {
  static const HybridRules rules;
  return rules;
}

BufferPlan plan_links(const ResolvedConfig& config, int num_ranks) {
  static const LinkRules rules;
  return {rules, to_layout_params(config, num_ranks), {}};
}

const DispatcherInfo& hybrid_info() {
  static constexpr DispatcherInfo::Functions kFunctions = {
      .cannot_serve = cannot_sum,
      .plan = [](const ResolvedConfig& config,
                 int num_ranks) { return plan_buffers(config, {.num_ranks = num_ranks}, hybrid_rules()); },
      .own_memory = hybrid_memory,
      .check = check_cuda_options,
      .create = create_hybrid};
  static const DispatcherInfo info(
      "hybrid", Device::kCuda, "one copy per (token, domain) to a rank there, which passes it on; sums come back so",
      hybrid_capabilities(), kFunctions);
  return info;
}

}  // namespace epistle::cuda
