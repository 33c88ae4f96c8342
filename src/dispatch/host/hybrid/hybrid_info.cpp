#include "dispatch/host/hybrid/hybrid_info.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "dispatch/host/direct/direct.hpp"
#include "dispatch/host/engine/host_functions.hpp"
#include "dispatch/host/hybrid/hybrid.hpp"

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
    // A rank packs what it sends in dispatch and what it returns in combine, and the other way round.
    const std::int64_t num_rows = std::max(demand.send_rows, demand.receive_rows);
    const std::int64_t row_bytes = std::max(layout.widest_row_bytes(), layout.pair_record_bytes());
    const std::int64_t gradient_bytes = layout.params().top_k * static_cast<std::int64_t>(sizeof(float));
    const std::int64_t beside_bytes = std::max(layout.params().scale_bytes, gradient_bytes);
    bytes[BufferSection::kSendRows] = num_rows * row_bytes;
    bytes[BufferSection::kStageRows] = num_rows * row_bytes;
    bytes[BufferSection::kSendScales] = num_rows * beside_bytes;
    bytes[BufferSection::kStageScales] = num_rows * beside_bytes;
    return bytes;
  }

  [[nodiscard]] RowDemand max_demand(const DispatchLayout& layout) const noexcept override {
    RowDemand demand = HostRules::max_demand(layout);
    if (!crosses_domains(layout)) return demand;
    demand.send_rows = layout.params().max_tokens * layout.max_domains_per_token();
    demand.receive_rows = layout.params().max_tokens * layout.num_domains();
    return demand;
  }
};

Capabilities hybrid_capabilities() {
  Capabilities can = host_capabilities();
  can.joins_domains = true;
  can.joins_hosts = true;
  // Its own order first.
  const auto own = std::find(can.orders.begin(), can.orders.end(), SumOrder::kDomains);
  std::rotate(can.orders.begin(), own, own + 1);
  return can;
}

std::vector<MemorySection> link_memory(const ResolvedConfig& config, int num_ranks) {
  if (config.domain_size == 0) return {};
  const std::int64_t bytes = kSignalBytes * num_ranks;
  return {{.name = "signals of links", .kind = MemoryKind::kPrivate, .initial_bytes = bytes, .largest_bytes = bytes}};
}

std::optional<std::string> cannot_sum(const ResolvedConfig& config, int num_ranks) {
  const int num_domains = num_ranks / config.ranks_of_domain(num_ranks);
  if (num_domains == 1 || config.order == SumOrder::kDomains || config.combine_hidden == 0) return std::nullopt;
  return fmt::format(
      "dispatcher 'hybrid' on host: it sums inside a domain before rows cross to another, so over {} domains its order "
      "is {}, not {}; take that, or direct or alltoall",
      num_domains, to_string(SumOrder::kDomains), to_string(config.order));
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
