// What the network of a group over several hosts carries.
#pragma once

#include "epistle/group.hpp"

#include "measure/bench_types.hpp"

namespace epistle {

/// Whether ranks that are not masked out are on several hosts: the same on all of them.
[[nodiscard]] bool crosses_network(const Group& group);

/// Collective where that is so, the same on all ranks: the best of several rounds in which every rank puts
/// bytes to the rank of its index on the next host, by the link that dispatchers use. Throws kUnsupported, kPeerLost,
/// kTimeout.
[[nodiscard]] NetworkLimit measure_network_limit(Group& group);

}  // namespace epistle
