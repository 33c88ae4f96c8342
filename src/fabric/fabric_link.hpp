// A link to ranks of other domains over the network.
#pragma once

#include <memory>

#include "fabric/fabric.hpp"
#include "group/domain_link.hpp"
#include "group/group_impl.hpp"

namespace epistle {

struct FabricLinkOptions {
  FabricRequest request = {};
  /// Signals wait until what was put before them has been delivered, also where the provider keeps the order. For
  /// tests.
  bool assume_unordered = false;
};

/// What a rank asks libfabric for: the provider that EPISTLE_FABRIC_PROVIDER names, over the card of its index on its
/// host among those that EPISTLE_FABRIC_NICS names, or at the address that the hosts are tied by.
[[nodiscard]] FabricRequest fabric_request(const GroupImpl& group);

/// Whether links between domains are made so: where the group spans hosts, or EPISTLE_DOMAIN_LINK asks for it.
[[nodiscard]] bool takes_fabric_links(const GroupImpl& group);

/// Collective over all ranks of the group; `region` is one of the group. Throws the same code on all ranks.
[[nodiscard]] std::unique_ptr<DomainLink> make_fabric_link(GroupImpl& group, SymmetricRegion region);
[[nodiscard]] std::unique_ptr<DomainLink> make_fabric_link(GroupImpl& group, SymmetricRegion region,
                                                           const FabricLinkOptions& options);

}  // namespace epistle
