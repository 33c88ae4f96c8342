// Random replicas, as tables that dispatch goes by, and tokens for them. The same on every machine.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "epistle/placement.hpp"

#include "layout/replica_hash.hpp"
#include "routing/philox.hpp"

namespace epistle::test {

struct Replicas {
  std::int32_t num_ranks = 1;
  std::int32_t slots_per_rank = 1;
  std::vector<std::int32_t> begin;    ///< [num_experts + 1]
  std::vector<ReplicaEntry> entries;  ///< slots: columns of the layout

  [[nodiscard]] std::int32_t num_experts() const { return static_cast<std::int32_t>(begin.size()) - 1; }
  [[nodiscard]] std::int32_t num_columns() const { return num_ranks * slots_per_rank; }
  [[nodiscard]] std::size_t first(std::int32_t expert) const {
    return static_cast<std::size_t>(begin[static_cast<std::size_t>(expert)]);
  }
  [[nodiscard]] std::span<const ReplicaEntry> of(std::int32_t expert) const {
    return std::span(entries).subspan(first(expert), first(expert + 1) - first(expert));
  }
};

/// Of a placement, with room for `slots_per_rank`.
[[nodiscard]] inline Replicas replicas_of(const Placement& placement, std::int32_t slots_per_rank) {
  Replicas replicas{.num_ranks = placement.num_ranks(), .slots_per_rank = slots_per_rank, .begin = {0}, .entries = {}};
  for (std::int32_t expert = 0; expert < placement.num_experts(); ++expert) {
    for (const SlotRef& slot : placement.replicas_of(expert)) {
      replicas.entries.push_back({.rank = slot.rank, .slot = slot.rank * slots_per_rank + slot.local_slot});
    }
    replicas.begin.push_back(static_cast<std::int32_t>(replicas.entries.size()));
  }
  return replicas;
}

/// Expert 0 on rank 0, expert 1 on both, expert 2 on rank 1.
[[nodiscard]] inline Replicas two_ranks_with_one_shared_expert() { return replicas_of({3, {{0, 1}, {1, 2}}, 1}, 2); }

/// 1 to 72 ranks, some of them without a slot; 1 to 300 experts, some on many ranks, many on one.
[[nodiscard]] inline Placement random_placement(std::uint64_t seed) {
  PhiloxStream stream(seed, RandomAddress{});
  constexpr std::uint32_t kRanks[] = {1, 2, 3, 8, 16, 33, 64, 72};
  const auto num_ranks = std::size_t{kRanks[stream.below(8)]};
  const auto num_experts = static_cast<std::int32_t>(1 + stream.below(300));
  std::vector<std::vector<std::int32_t>> slots(num_ranks);
  const std::size_t num_holders = 1 + stream.below(num_ranks);
  const std::uint64_t one_in = 1 + stream.below(6);  // so many experts have several replicas
  for (std::int32_t expert = 0; expert < num_experts; ++expert) {
    std::size_t count = 1;
    if (stream.below(one_in) == 0) count += stream.below(stream.below(8) == 0 ? 72 : 3);
    for (std::size_t idx = 0; idx < std::min(count, num_holders); ++idx) {
      auto& slot = slots[(stream.below(num_holders) + idx) % num_holders];
      if (std::find(slot.begin(), slot.end(), expert) == slot.end()) slot.push_back(expert);
    }
  }
  return {num_experts, slots, 1};
}

[[nodiscard]] inline std::int32_t some_more_slots(const Placement& placement, std::uint64_t seed) {
  return placement.max_slots_per_rank() + static_cast<std::int32_t>(seed % 3);
}

[[nodiscard]] inline Replicas random_replicas(std::uint64_t seed) {
  const Placement placement = random_placement(seed);
  return replicas_of(placement, some_more_slots(placement, seed));
}

/// Nearly alike, very uneven, or of a few experts only.
[[nodiscard]] inline std::vector<std::int64_t> random_tokens(std::uint64_t seed, int batch, std::int32_t num_experts) {
  PhiloxStream stream(seed + 1000, RandomAddress{.token = static_cast<std::uint32_t>(batch)});
  const std::uint64_t kind = stream.below(4);
  std::vector<std::int64_t> tokens(static_cast<std::size_t>(num_experts));
  for (std::int64_t& count : tokens) {
    const auto draw = static_cast<std::int64_t>(stream.below(4096));
    if (kind == 0) count = 1000 + draw % 64;
    if (kind == 1) count = draw;
    if (kind == 2) count = 2'000'000 / (1 + draw);
    if (kind == 3) count = draw < 256 ? draw * 50 : 0;
  }
  return tokens;
}

}  // namespace epistle::test
