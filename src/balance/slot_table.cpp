#include "balance/slot_table.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>

#include <fmt/format.h>

#include "core/reject.hpp"

namespace epistle::balance {
namespace {

/// `total` things shared out to `num_parts`, the first ones one more.
std::vector<std::int32_t> share_out(std::int32_t total, std::int32_t num_parts) {
  std::vector<std::int32_t> parts(static_cast<std::size_t>(num_parts), total / num_parts);
  std::fill_n(parts.begin(), total % num_parts, total / num_parts + 1);
  return parts;
}

constexpr std::int64_t kMaxSlots = std::int64_t{1} << 24;  // what a slot takes here stays below a gigabyte

/// Slots of all ranks together. Refuses what no table is made of, before there is one.
std::int64_t count_slots(std::span<const std::int32_t> slots_of_rank) {
  std::int64_t total = 0;
  std::int64_t rank = 0;
  for (const std::int32_t slots : slots_of_rank) {
    if (slots < 0) reject(fmt::format("rank {} has {} slots, expected 0 or more", rank, slots));
    total += slots;
    ++rank;
  }
  if (total > kMaxSlots) reject(fmt::format("{} slots, expected at most {}", total, kMaxSlots));
  return total;
}

void check_room(std::int32_t num_experts, std::int64_t num_slots) {
  if (num_experts >= 1 && num_slots >= num_experts) return;
  reject(fmt::format("{} slots for {} experts, expected at least one expert and a slot for each; give more slots",
                     num_slots, num_experts));
}

}  // namespace

Cluster Cluster::even(std::int32_t num_ranks, std::int32_t num_slots, std::int32_t num_domains) {
  if (num_ranks < 1 || num_slots < 0) {
    reject(
        fmt::format("{} slots on {} ranks, expected at least one rank and no negative number", num_slots, num_ranks));
  }
  if (num_domains < 1 || num_domains > num_ranks) {
    reject(fmt::format("{} domains of {} ranks, expected 1 to {}", num_domains, num_ranks, num_ranks));
  }
  Cluster cluster{.slots_of_rank = share_out(num_slots, num_ranks), .domain_of_rank = {}};
  if (num_domains > 1) {
    const std::vector<std::int32_t> sizes = share_out(num_ranks, num_domains);
    for (std::int32_t domain = 0; domain < num_domains; ++domain) {
      cluster.domain_of_rank.insert(cluster.domain_of_rank.end(),
                                    static_cast<std::size_t>(sizes[static_cast<std::size_t>(domain)]), domain);
    }
  }
  return cluster;
}

std::int32_t Cluster::num_slots() const noexcept {
  // More than a table may have is refused by check().
  return static_cast<std::int32_t>(
      std::min<std::int64_t>(std::accumulate(slots_of_rank.begin(), slots_of_rank.end(), std::int64_t{0}),
                             std::numeric_limits<std::int32_t>::max()));
}

std::int32_t Cluster::num_domains() const noexcept {
  return domain_of_rank.empty() ? 1 : *std::max_element(domain_of_rank.begin(), domain_of_rank.end()) + 1;
}

std::int32_t Cluster::num_holders() const noexcept {
  return static_cast<std::int32_t>(
      std::count_if(slots_of_rank.begin(), slots_of_rank.end(), [](std::int32_t slots) { return slots > 0; }));
}

void Cluster::check(std::int32_t num_experts) const {
  if (num_ranks() < 1) reject("no ranks, expected at least 1");
  check_room(num_experts, count_slots(slots_of_rank));
  if (!domain_of_rank.empty() && domain_of_rank.size() != slots_of_rank.size()) {
    reject(fmt::format("domains of {} ranks, expected those of {}", domain_of_rank.size(), num_ranks()));
  }
  for (const std::int32_t domain : domain_of_rank) {
    if (domain < 0 || domain >= num_ranks()) {
      reject(fmt::format("domain {}, expected 0 to {}", domain, num_ranks() - 1));
    }
  }
}

SlotTable SlotTable::empty(std::span<const std::int32_t> slots_of_rank) {
  static_cast<void>(count_slots(slots_of_rank));
  SlotTable table;
  table.begin.reserve(slots_of_rank.size() + 1);
  table.begin.push_back(0);
  for (const std::int32_t slots : slots_of_rank) table.begin.push_back(table.begin.back() + slots);
  table.expert.assign(static_cast<std::size_t>(table.begin.back()), kEmptySlot);
  return table;
}

SlotTable SlotTable::trivial(std::int32_t num_experts, std::span<const std::int32_t> slots_of_rank) {
  check_room(num_experts, count_slots(slots_of_rank));
  SlotTable table = empty(slots_of_rank);
  const auto num_ranks = static_cast<std::int32_t>(slots_of_rank.size());
  std::vector<std::int32_t> counts = share_out(num_experts, num_ranks);
  const bool fits = std::equal(counts.begin(), counts.end(), slots_of_rank.begin(), std::less_equal<>());
  std::int32_t expert = 0;
  for (std::int32_t rank = 0; rank < num_ranks; ++rank) {
    const auto r = static_cast<std::size_t>(rank);
    const std::int64_t end_in_proportion =
        std::int64_t{num_experts} * table.begin[r + 1] / std::max(table.num_slots(), 1);
    const std::int32_t end = fits ? expert + counts[r] : static_cast<std::int32_t>(end_in_proportion);
    for (std::int32_t slot = table.begin[r]; expert < end; ++slot) {
      table.expert[static_cast<std::size_t>(slot)] = expert++;
    }
  }
  return table;
}

std::vector<std::int32_t> SlotTable::rank_of_slot() const {
  std::vector<std::int32_t> ranks(expert.size());
  for (std::int32_t rank = 0; rank < num_ranks(); ++rank) {
    const auto r = static_cast<std::size_t>(rank);
    std::fill(ranks.begin() + begin[r], ranks.begin() + begin[r + 1], rank);
  }
  return ranks;
}

std::vector<std::int32_t> SlotTable::replica_counts(std::int32_t num_experts) const {
  std::vector<std::int32_t> counts(static_cast<std::size_t>(num_experts), 0);
  for (const std::int32_t id : expert) {
    if (id != kEmptySlot) ++counts[static_cast<std::size_t>(id)];
  }
  return counts;
}

void SlotTable::check(std::int32_t num_experts, const Cluster& cluster) const {
  if (num_ranks() != cluster.num_ranks()) {
    reject(fmt::format("the placement is of {} ranks, expected {}", num_ranks(), cluster.num_ranks()));
  }
  for (std::int32_t rank = 0; rank < num_ranks(); ++rank) {
    const auto slots = static_cast<std::int32_t>(experts_of(rank).size());
    const std::int32_t expected = cluster.slots_of_rank[static_cast<std::size_t>(rank)];
    if (slots != expected) {
      reject(fmt::format("the placement gives rank {} {} slots, expected {}", rank, slots, expected));
    }
  }
  for (const std::int32_t id : expert) {
    if (id < kEmptySlot || id >= num_experts) {
      reject(fmt::format("the placement names expert {}, expected -1 (an empty slot) to {}", id, num_experts - 1));
    }
  }
  const std::vector<std::int32_t> counts = replica_counts(num_experts);
  const auto missing = std::find(counts.begin(), counts.end(), 0);
  if (missing != counts.end()) {
    reject(fmt::format("the placement has no slot for expert {}; every expert needs one", missing - counts.begin()));
  }
}

Placement SlotTable::to_placement(std::int32_t num_experts, std::uint64_t generation, std::span<const double> quotas,
                                  epistle::ReplicaChoice choice) const {
  std::vector<double> quota_of_expert(static_cast<std::size_t>(num_experts), 0.0);
  for (std::size_t slot = 0; slot < quotas.size(); ++slot) {
    if (expert[slot] != kEmptySlot) quota_of_expert.at(static_cast<std::size_t>(expert[slot])) += quotas[slot];
  }
  std::vector<std::vector<std::int32_t>> slot_experts(static_cast<std::size_t>(num_ranks()));
  if (!quotas.empty()) choice.quotas.assign(slot_experts.size(), {});
  for (std::size_t rank = 0; rank < slot_experts.size(); ++rank) {
    const auto end = static_cast<std::size_t>(begin[rank + 1]);
    for (auto slot = static_cast<std::size_t>(begin[rank]); slot < end; ++slot) {
      if (expert[slot] == kEmptySlot) continue;
      slot_experts[rank].push_back(expert[slot]);
      if (quotas.empty()) continue;
      const bool has_quota = quota_of_expert[static_cast<std::size_t>(expert[slot])] > 0.0;
      choice.quotas[rank].push_back(has_quota ? quotas[slot] : 1.0);
    }
  }
  return {num_experts, slot_experts, generation, choice};
}

}  // namespace epistle::balance
