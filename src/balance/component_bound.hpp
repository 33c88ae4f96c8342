// What no placement can do better where slots are scarce: ranks that have all slots in use and few replicas to share
// load with.
#pragma once

#include <cstdint>
#include <span>

#include "balance/slot_table.hpp"

namespace epistle::balance {

/// A lower bound of the largest rank load over all placements in these slots and all splits; 0 where it tells nothing:
/// ranks have different numbers of slots. Only the hottest experts are looked at.
///
/// Ranks and experts are the nodes of a graph whose edges are the slots. A component of N ranks, n slots each, and M
/// experts has at most n N edges and at least N + M - 1, so M <= (n - 1) N + 1; and n N - M of its slots are more than
/// one for each of its experts. Over all components these are as many as the cluster has slots more than experts. With
/// a largest load of T a component that holds hot experts needs N T at least for them and for its other experts, which
/// are at best the coolest: this takes ranks, and so slots. T is possible only where some way to put hot experts
/// together takes no more slots than there are.
[[nodiscard]] double component_bound(std::span<const std::int64_t> loads, const Cluster& cluster);

}  // namespace epistle::balance
