#include "dispatch/host/engine/link_bytes.hpp"

#include "dispatch/call/dispatcher_impl.hpp"

namespace epistle::host {
namespace {

void add(LinkBytes& bytes, const Domains& domains, int from, int to, std::int64_t num_bytes) noexcept {
  if (from == to) {
    bytes.own += num_bytes;
  } else if (domains.share_one(from, to)) {
    bytes.domain += num_bytes;
  } else {
    bytes.network += num_bytes;
  }
}

/// Rows that go straight from rank to rank: one per (token, rank), or per (token, expert).
LinkBytes direct_links(const HostContext& context, const HostHandle& handle, bool per_expert, std::int64_t row_bytes) {
  LinkBytes bytes;
  for (int peer = 0; peer < context.num_ranks; ++peer) {
    std::int64_t num_rows = handle.num_pairs(context.rank, peer);
    if (per_expert) {
      const ExpertPartition partition = context.layout().partition();
      const int first = partition.first_expert(peer);
      num_rows = 0;
      for (int expert = first; expert < first + partition.num_local_experts(peer); ++expert) {
        num_rows += handle.tables.num_kept(context.rank, expert);
      }
    }
    add(bytes, context.domains(), context.rank, peer, num_rows * row_bytes);
  }
  return bytes;
}

/// Rows that cross once per (token, domain), and are passed on there.
LinkBytes forwarded_links(const HostContext& context, const HostHandle& handle, std::int64_t row_bytes) {
  const Domains& domains = context.domains();
  LinkBytes bytes;
  for (std::size_t token = 0; token + 1 < handle.send_begin.size(); ++token) {
    const auto first = static_cast<std::size_t>(handle.send_begin[token]);
    const auto last = static_cast<std::size_t>(handle.send_begin[token + 1]);
    for (std::size_t idx = first; idx < last; ++idx) {
      const int dst = handle.sends[idx].dst_rank;
      const int domain = domains.domain_of(dst);
      // In the own domain rows go straight.
      const int forwarder = context.peers.forwarder(context.rank, domain);
      add(bytes, domains, forwarder, dst, row_bytes);
      bool is_new = !domains.share_one(context.rank, dst);
      for (std::size_t before = first; before < idx && is_new; ++before) {
        is_new = !domains.share_one(handle.sends[before].dst_rank, dst);
      }
      if (is_new) bytes.network += row_bytes;
    }
  }
  return bytes;
}

}  // namespace

WireBytes link_bytes_of(const HostContext& context, const HostHandle& handle, const RoutingStats& stats) {
  const LayoutParams& params = context.layout().params();
  const std::int64_t sent_bytes = params.row_bytes + params.scale_bytes;
  if (!context.plan.crosses_domains()) {
    WireBytes bytes = wire_bytes_of(context.plan, stats);
    bytes.dispatch_links = direct_links(context, handle, context.plan.sends_per_expert(), sent_bytes);
    const bool back_per_expert = !context.plan.combines_per_rank() && !context.layout().token_major();
    bytes.combine_links = direct_links(context, handle, back_per_expert, params.combine_row_bytes);
    if (context.plan.uses_links()) {
      const std::int64_t record_bytes = context.layout().record_bytes();
      bytes.header_bytes = direct_links(context, handle, context.plan.sends_per_expert(), record_bytes).network;
    }
    return bytes;
  }
  WireBytes bytes{.dispatch_links = forwarded_links(context, handle, sent_bytes),
                  .combine_links = forwarded_links(context, handle, params.combine_row_bytes)};
  bytes.dispatch = bytes.dispatch_links.domain + bytes.dispatch_links.network;
  bytes.combine = bytes.combine_links.domain + bytes.combine_links.network;
  const Domains& domains = context.domains();
  const int own = domains.domain_of(context.rank);
  for (int domain = 0; domain < domains.count(); ++domain) {
    if (domain == own) continue;
    bytes.header_bytes +=
        handle.sent_pairs[static_cast<std::size_t>(domain)].num * context.layout().pair_record_bytes();
  }
  return bytes;
}

}  // namespace epistle::host
