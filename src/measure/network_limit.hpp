// What the network between the domains of a group carries.
#pragma once

#include "epistle/group.hpp"

#include "measure/bench_types.hpp"

namespace epistle {

/// Whether bytes between ranks that are not masked out go over the network: they are on several hosts, or in declared
/// domains that EPISTLE_DOMAIN_LINK joins by libfabric. The same on all ranks.
[[nodiscard]] bool crosses_network(const Group& group);

/// Collective where that is so, the same on all ranks: the best of several rounds in which every rank puts bytes to the
/// rank of its index across, by the link that dispatchers use; and what of it every phase has reached. Throws
/// kUnsupported, kPeerLost, kTimeout.
void add_network_limit(Group& group, BenchResult& result);

}  // namespace epistle
