// Placements where slots are scarce: hot experts put together as takes fewest replicas (hot_components.hpp), all others
// put to them or to ranks without one.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "balance/slot_table.hpp"

namespace epistle::balance {

/// Of the ways that are possible with the least load the best that all other experts fit to; nothing where there is
/// none, ranks have different numbers of slots, or there is a slot to spare on every rank. Its shares are those of
/// share_best().
[[nodiscard]] std::optional<SlotTable> plan_components(std::span<const std::int64_t> loads,
                                                       std::span<const std::int32_t> slots_of_rank);

}  // namespace epistle::balance
