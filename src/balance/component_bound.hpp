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
/// It is the smallest load for which there is a way to put hot experts together (hot_components.hpp).
[[nodiscard]] double component_bound(std::span<const std::int64_t> loads, const Cluster& cluster);

}  // namespace epistle::balance
