#include "dispatch/host/engine/host_context.hpp"

#include <algorithm>
#include <utility>

#include "core/settings.hpp"
#include "dispatch/link/link_memory.hpp"
#include "topology/machine.hpp"

namespace epistle::host {
namespace {

// Where the size of the last-level cache is not to be had.
constexpr std::int64_t kDefaultLastLevelCacheBytes = 32 << 20;

std::unique_ptr<DomainLink> open_link(GroupImpl& group, const BufferPlan& plan, const SymmetricRegion& region) {
  return plan.uses_links() ? open_domain_link(group, region) : nullptr;
}

}  // namespace

std::int64_t streaming_threshold_bytes(int num_ranks) {
  const std::int64_t configured = settings().stream_bytes();
  if (configured >= 0) return configured;
  // Together the ranks would push out of the last-level cache what their readers need next; see docs/tuning/host.md.
  const std::int64_t cache_bytes = machine_info().last_level_cache_bytes;
  return (cache_bytes > 0 ? cache_bytes : kDefaultLastLevelCacheBytes) / num_ranks;
}

HostContext::HostContext(GroupImpl& group_impl, const ResolvedConfig& resolved, const PlanRules& rules,
                         const HostOptions& options)
    : config(resolved),
      plan(plan_buffers(resolved, group_impl.num_ranks(), rules, DomainPeers(group_impl).most_sources_of_domain())),
      group(&group_impl),
      rank(group_impl.rank()),
      num_ranks(group_impl.num_ranks()),
      stream_bytes(options.stream_bytes >= 0 ? options.stream_bytes : streaming_threshold_bytes(num_ranks)),
      memory(group_impl, plan),
      link(open_link(group_impl, plan, memory.region())),
      peers(group_impl),
      pool(options.num_workers),
      buffer_of(static_cast<std::size_t>(num_ranks), 0),
      rank_of_expert(static_cast<std::size_t>(layout().params().num_experts)) {
  find_ranks_of_experts();
  expose_landing_places();
}

void HostContext::find_ranks_of_experts() {
  for (std::int32_t expert = 0; expert < layout().params().num_experts; ++expert) {
    const int owner = layout().partition().rank_of(expert);
    rank_of_expert[static_cast<std::size_t>(expert)] = group->is_masked(owner) ? -1 : owner;
  }
  has_mask = !group->masked_ranks().empty();
}

void HostContext::renew() {
  peers = DomainPeers(*group);
  // Who passes on the rows of more ranks needs more room.
  plan = plan_buffers(config, num_ranks, plan.rules(), peers.most_sources_of_domain());
  memory.renew();
  // The former link stays until there is another one: it counts bytes, and a rank may be lost meanwhile.
  if (std::unique_ptr<DomainLink> next = open_link(*group, plan, memory.region())) {
    epistle::expose_landing_places(*next, plan, memory);
    next->continue_count(link->sent_bytes());
    link = std::move(next);
  }
  num_exchanges = 0;
  std::fill(buffer_of.begin(), buffer_of.end(), 0);
  find_ranks_of_experts();
}

void HostContext::grow(const std::vector<RowDemand>& demands, const Call& call, Phase phase) {
  if (memory.grow(demands, call, phase)) expose_landing_places();
}

void HostContext::expose_landing_places() {
  if (link != nullptr) epistle::expose_landing_places(*link, plan, memory);
}

void HostContext::copy_block(const RowBlock& block) {
  const bool is_dense = block.source_stride == 0 || block.source_stride == block.row_bytes;
  pool.parallel_for(block.num_rows, [&](std::int64_t begin, std::int64_t end) {
    if (is_dense) {
      copy_row(block.source + begin * block.row_bytes, block.target + begin * block.row_bytes,
               static_cast<std::size_t>((end - begin) * block.row_bytes), block.mode);
    } else {
      for (std::int64_t row = begin; row < end; ++row) {
        copy_row(block.source + row * block.source_stride, block.target + row * block.row_bytes,
                 static_cast<std::size_t>(block.row_bytes), block.mode);
      }
    }
    store_fence();
  });
}

}  // namespace epistle::host
