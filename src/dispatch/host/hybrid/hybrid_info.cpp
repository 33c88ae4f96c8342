#include "dispatch/host/hybrid/hybrid_info.hpp"

#include <optional>
#include <string>

#include "dispatch/host/direct/direct.hpp"
#include "dispatch/host/engine/host_functions.hpp"
#include "dispatch/host/hybrid/hybrid.hpp"
#include "dispatch/link/domain_sums.hpp"
#include "dispatch/link/link_memory.hpp"

namespace epistle::host {
namespace {

/// What crosses is packed, and lands in order, on both ends: rows of (token, domain) pairs, those of the own domain
/// included (their sums lie among those of other domains), and before them the records that announce them. Within one
/// domain nothing crosses.
class HybridRules final : public HostRules {
 public:
  [[nodiscard]] bool crosses_domains(const DispatchLayout& layout) const noexcept override {
    return layout.num_domains() > 1;
  }

  [[nodiscard]] SectionBytes content_bytes(const DispatchLayout& layout,
                                           const RowDemand& demand) const noexcept override {
    SectionBytes bytes = HostRules::content_bytes(layout, demand);
    if (!crosses_domains(layout)) return bytes;
    set_link_sections(bytes, layout, demand, layout.pair_record_bytes());
    return bytes;
  }

  [[nodiscard]] RowDemand max_demand(const DispatchLayout& layout) const noexcept override {
    RowDemand demand = HostRules::max_demand(layout);
    if (crosses_domains(layout)) set_largest_pairs(demand, layout);
    return demand;
  }
};

Capabilities hybrid_capabilities() {
  Capabilities can = host_capabilities();
  can.joins_domains = true;
  can.joins_hosts = true;
  put_domains_first(can.orders);
  return can;
}

std::vector<MemorySection> link_memory(const ResolvedConfig& config, const MemoryQuery& query) {
  if (config.domain_size == 0) return {};
  const std::int64_t bytes = kSignalBytes * query.num_ranks;
  return {{.name = "signals of links", .kind = MemoryKind::kPrivate, .initial_bytes = bytes, .largest_bytes = bytes}};
}

std::optional<std::string> cannot_sum(const ResolvedConfig& config, int num_ranks) {
  return cannot_sum_over_domains(config, num_ranks, Device::kHost);
}

/// Within one domain nothing crosses.
std::unique_ptr<RowMover> make_hybrid(HostContext& context) {
  return context.plan.crosses_domains() ? make_mover<HybridMover>(context) : make_mover<DirectMover>(context);
}

}  // namespace

const DispatcherInfo& hybrid_info() {
  static const DispatcherInfo::Functions functions = [] {
    DispatcherInfo::Functions made = host_functions<HybridMover, HybridRules, &make_hybrid>();
    made.cannot_serve = cannot_sum;
    made.own_memory = link_memory;
    return made;
  }();
  static const DispatcherInfo info(
      "hybrid", Device::kHost, "one copy per (token, domain) to a rank there, which passes it on; sums come back so",
      hybrid_capabilities(), functions);
  return info;
}

}  // namespace epistle::host
