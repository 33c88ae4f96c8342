// Placements from nothing.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "balance/slot_table.hpp"

namespace epistle::balance {

/// The sum of all loads is at most this: a load and a rank go into one word.
inline constexpr std::int64_t kMaxTotalLoad = std::int64_t{1} << 40;

/// For replicas that share an expert's load evenly: replicas go to the hottest experts, so that the largest load per
/// replica is least, then every replica, the heaviest first, to the least loaded rank. Fills all slots, never with two
/// replicas of an expert on a rank; slots that no expert can use stay empty. There must be a slot for every expert.
[[nodiscard]] SlotTable pack_even(std::span<const std::int64_t> loads, std::span<const std::int32_t> slots_of_rank);

/// A placement with the part of its expert's load that every slot takes.
struct SharedPack {
  SlotTable table;
  std::vector<std::int64_t> share;  ///< [num_slots]
};

/// For replicas that share a load as is best: every expert goes to one rank, the heaviest first to the least loaded,
/// and each rank that has less than the mean is filled up to it by a replica of an expert of a rank that has more
/// (Walker's alias method: at most one such replica on a rank, and all come to the mean). Slots that remain get further
/// replicas of the hottest experts, without any load for now: room for loads that change. To be used where there is a
/// slot to spare on every rank.
[[nodiscard]] SharedPack pack_shared(std::span<const std::int64_t> loads, std::span<const std::int32_t> slots_of_rank);

}  // namespace epistle::balance
