// A batch that is far from even, and where its rows go by quotas made for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "epistle/dispatcher.hpp"

#include "dispatch/call/placed_experts.hpp"
#include "dispatch/call/resolved_config.hpp"

namespace epistle::testing {

inline constexpr int kBatchRanks = 4;
inline constexpr std::int64_t kBatchTokens = 128;
inline constexpr std::int32_t kBatchTopK = 2;
inline constexpr std::uint64_t kBatchSeed = 99;

/// Expert 0 is on all ranks, all others on two.
inline Placement two_replicas_each() { return {8, {{0, 1, 2, 3}, {0, 4, 5, 1}, {0, 6, 7, 2}, {0, 3, 4, 5, 6, 7}}, 1}; }

inline DispatcherConfig batch_config() {
  return {.hidden = 64,
          .num_experts = 8,
          .top_k = kBatchTopK,
          .max_tokens = kBatchTokens,
          .layout = ExpertBlocks{.rows_per_expert = kBatchRanks * kBatchTokens},
          .sizing = Capacity{},
          .placement = two_replicas_each(),
          .slots_per_rank = 6};
}

/// Half of the assignments are of expert 0, and a quarter of expert 1.
inline std::vector<std::int32_t> batch_ids_of(int rank) {
  std::vector<std::int32_t> ids;
  for (std::int32_t token = 0; token < kBatchTokens; ++token) {
    ids.push_back(0);
    ids.push_back(token % 2 == 0 ? 1 : 2 + (token / 2 + rank) % 6);
  }
  return ids;
}

inline std::vector<std::int64_t> batch_tokens_of_all() {
  std::vector<std::int64_t> tokens(8, 0);
  for (int rank = 0; rank < kBatchRanks; ++rank) {
    for (const std::int32_t id : batch_ids_of(rank)) ++tokens[static_cast<std::size_t>(id)];
  }
  return tokens;
}

/// By the tables of the host: rows of each of a rank's slots.
inline std::vector<std::int32_t> batch_counts_expected(int rank) {
  const ResolvedConfig config = resolve_config(batch_config(), kBatchRanks);
  const std::vector<std::int64_t> tokens = batch_tokens_of_all();
  std::vector<std::int32_t> counts(two_replicas_each().experts_of(rank).size(), 0);
  for (int source = 0; source < kBatchRanks; ++source) {
    PlacedExperts placed(two_replicas_each(), config, kBatchRanks, source);
    placed.share_batch({.expert_tokens = tokens.data()});
    const SlotChooser chooser = placed.chooser(kBatchSeed);
    const std::vector<std::int32_t> ids = batch_ids_of(source);
    for (std::size_t at = 0; at < ids.size(); ++at) {
      const std::int32_t slot = chooser.slot_of(ids[at], static_cast<std::int64_t>(at) / kBatchTopK);
      if (slot / config.slots_per_rank == rank) ++counts[static_cast<std::size_t>(slot % config.slots_per_rank)];
    }
  }
  return counts;
}

}  // namespace epistle::testing
