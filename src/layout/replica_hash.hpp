// Which replica of an expert a token goes to: u = hash(token position, expert, step seed), and the replica in whose
// part of [0, 1) u falls, parts being the quotas. Integers only, so that the host and a GPU come to the same replica;
// the column of the top-k list that named the expert plays no part.
#pragma once

#include <cstdint>

#include "epistle/types.hpp"

namespace epistle {

/// Mixes all bits of `value` into all bits of the result: the finaliser of SplitMix64 (Steele, Lea, Flood: "Fast
/// splittable pseudorandom number generators", OOPSLA 2014), in the constants of Stafford's variant 13.
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::uint64_t mix_bits(std::uint64_t value) noexcept {
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9ULL;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBULL;
  return value ^ (value >> 31);
}

/// What a token's replica of an expert depends on.
struct ReplicaKey {
  std::int64_t token_position = 0;  ///< of the token in the whole batch, over all ranks
  std::int32_t expert = 0;
  std::uint64_t step_seed = 0;  ///< another one in every step, so that no token is always sent the same way
};

[[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::uint64_t hash_key(const ReplicaKey& key) noexcept {
  constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15ULL;  // 2^64 / golden ratio, the increment of SplitMix64
  const std::uint64_t step = mix_bits(key.step_seed + kGolden);
  const std::uint64_t expert = mix_bits(step + kGolden * (static_cast<std::uint64_t>(key.expert) + 1));
  return mix_bits(expert + kGolden * static_cast<std::uint64_t>(key.token_position));
}

/// A replica in the table of its expert, by rank and slot. Parts are in units of 2^-32.
struct ReplicaEntry {
  std::int32_t rank = 0;
  std::int32_t domain = 0;
  std::int32_t slot = 0;           ///< among all slots
  std::uint32_t part_end = 0;      ///< end of its part of [0, 1); of the last replica, 0 stands for 1
  std::uint32_t own_share = 0;     ///< tokens of its own rank that it takes, before any others are asked
  std::uint32_t domain_share = 0;  ///< of tokens that are left, those that its domain keeps
  std::uint32_t domain_end = 0;    ///< end of its part among those, of [0, 1)
  std::uint32_t far_end = 0;       ///< and among the tokens left after that
};

/// Tables of all experts, as plain pointers.
struct ReplicaTableView {
  const std::int32_t* begin = nullptr;  ///< [num_experts + 1] into entries
  const ReplicaEntry* entries = nullptr;
};

/// u < end, where the end 0 of the last part means 1.
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr bool is_in_part(std::uint32_t u, std::uint32_t end, bool is_last) noexcept {
  return is_last || u < end;
}

/// The entry that the token goes to, by quota alone.
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t choose_replica(const ReplicaTableView& table,
                                                                        const ReplicaKey& key) noexcept {
  const std::int32_t first = table.begin[key.expert];
  const std::int32_t last = table.begin[key.expert + 1] - 1;
  if (first == last) return first;
  const auto u = static_cast<std::uint32_t>(hash_key(key) >> 32);
  std::int32_t entry = first;
  while (!is_in_part(u, table.entries[entry].part_end, entry == last)) ++entry;
  return entry;
}

/// The entry that a token of `src_rank` in `src_domain` goes to, near ones first as far as the quotas allow.
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t choose_near_replica(const ReplicaTableView& table,
                                                                             const ReplicaKey& key,
                                                                             std::int32_t src_rank,
                                                                             std::int32_t src_domain) noexcept {
  const std::int32_t first = table.begin[key.expert];
  const std::int32_t last = table.begin[key.expert + 1] - 1;
  if (first == last) return first;
  const std::uint64_t hash = hash_key(key);
  const auto u = static_cast<std::uint32_t>(hash >> 32);
  std::int32_t near = -1;  // the last one of the domain
  std::uint32_t kept = 0;  // by the domain
  for (std::int32_t entry = first; entry <= last; ++entry) {
    const ReplicaEntry& replica = table.entries[entry];
    if (replica.rank == src_rank && u < replica.own_share) return entry;
    if (replica.domain == src_domain) {
      near = entry;
      kept = replica.domain_share;
    }
  }
  const std::uint64_t again = mix_bits(hash);
  const auto v = static_cast<std::uint32_t>(again >> 32);
  const auto w = static_cast<std::uint32_t>(again);
  if (near >= 0 && v < kept) {
    for (std::int32_t entry = first; entry <= near; ++entry) {
      const ReplicaEntry& replica = table.entries[entry];
      if (replica.domain == src_domain && is_in_part(w, replica.domain_end, entry == near)) return entry;
    }
  }
  std::int32_t entry = first;
  while (!is_in_part(w, table.entries[entry].far_end, entry == last)) ++entry;
  return entry;
}

/// How the tokens of one rank choose.
struct ReplicaPolicy {
  std::int32_t near_first = 0;  ///< 1: replicas near the token come first
  std::int32_t domain = 0;      ///< of the rank
};

/// From the experts that a rank's tokens name to the slots that serve them. Plain pointers: in device code as well.
struct SlotChooser {
  ReplicaTableView replicas;
  const ReplicaPolicy* policy = nullptr;
  std::int32_t rank = 0;
  std::int64_t first_position = 0;  ///< of the rank's first token
  std::uint64_t step_seed = 0;

  /// ReplicaEntry::slot of the replica that serves the rank's `token`.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t slot_of(std::int32_t expert,
                                                                   std::int64_t token) const noexcept {
    const ReplicaKey key{first_position + token, expert, step_seed};
    const std::int32_t entry = policy->near_first != 0 ? choose_near_replica(replicas, key, rank, policy->domain)
                                                       : choose_replica(replicas, key);
    return replicas.entries[entry].slot;
  }
};

}  // namespace epistle
