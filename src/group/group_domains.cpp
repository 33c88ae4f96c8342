// Which ranks of a group form a domain, and the links between domains.
#include <vector>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "group/group_impl.hpp"
#include "group/limits.hpp"

namespace epistle {
namespace {

constexpr Call kFormDomains{.kind = CallKind::kFormDomains};

}  // namespace

void GroupImpl::form_domains(int declared_size) {
  DomainSizes own{.host = num_ranks_, .gpu = num_ranks_};
  const Complaint complaint = attempt([&] {
    std::vector<int> hosts(static_cast<std::size_t>(num_ranks_));
    std::vector<int> reach(hosts.size());
    for (int rank = 0; rank < num_ranks_; ++rank) {
      hosts[static_cast<std::size_t>(rank)] = host_of(rank);
      reach[static_cast<std::size_t>(rank)] = world_->gpu_reach_of(rank);
    }
    own = resolve_domain_sizes(declared_size, hosts, reach);
  });
  // The ranks of a thread group are made one after the other, with one declaration.
  if (world_->kind() == GroupKind::kThreads) {
    if (complaint) throw Error(*complaint);
  } else {
    const std::vector<DomainSizes> sizes = gather(kFormDomains, Phase::kCreate, own, complaint);
    for (std::size_t peer = 1; peer < sizes.size(); ++peer) {
      if (sizes[peer].gpu == sizes[0].gpu) continue;
      throw AgreedError(ErrorCode::kShapeMismatch,
                        fmt::format("rank 0 has domains of {} ranks, rank {} domains of {}; declare the same on all "
                                    "ranks (GroupOptions::domain_size, EPISTLE_DOMAIN_SIZE)",
                                    sizes[0].gpu, peer, sizes[peer].gpu),
                        {.rank = rank_, .peer_rank = static_cast<int>(peer), .phase = Phase::kCreate});
    }
  }
  domains_ = Domains(num_ranks_, own.host);
  gpu_domains_ = Domains(num_ranks_, own.gpu);
}

std::unique_ptr<DomainLink> GroupImpl::open_link(const SymmetricRegion& region) {
  const std::int64_t signal_bytes = kSignalBytes * num_ranks_;
  SymmetricRegion signals = create_region(signal_bytes);
  SymmetricRegion far = region;
  take_together({.kind = CallKind::kCreateRegion, .detail = static_cast<std::uint64_t>(signal_bytes)}, Phase::kCreate,
                [&] {
                  signals.commit(0, signal_bytes);
                  // Threads share their mappings.
                  if (world_->kind() == GroupKind::kThreads) return;
                  far = region.map_again();
                  const int own_begin = domains_.first_rank(domains_.domain_of(rank_));
                  region.hide(0, own_begin);
                  region.hide(own_begin + domains_.size(), num_ranks_);
                });
  return make_mapped_link(std::move(far), std::move(signals), rank_);
}

}  // namespace epistle
