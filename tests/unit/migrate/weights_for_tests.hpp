// Weights that tell which expert they are of, to the byte.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "epistle/migration.hpp"

#include "balance/slot_table.hpp"

namespace epistle::test {

inline std::byte weight_byte(std::int32_t expert, std::size_t idx) {
  const std::uint64_t word =
      (static_cast<std::uint64_t>(expert) + 1) * 0x9e3779b97f4a7c15ULL + idx * 0xbf58476d1ce4e5b9ULL;
  return static_cast<std::byte>(word >> 56U);
}

inline void fill_weights(const WeightStore& store, int rank) {
  const auto experts = store.placement().experts_of(rank);
  for (std::size_t slot = 0; slot < experts.size(); ++slot) {
    const std::span<std::byte> weights = store.weights(static_cast<std::int32_t>(slot));
    for (std::size_t idx = 0; idx < weights.size(); ++idx) weights[idx] = weight_byte(experts[slot], idx);
  }
}

/// What is wrong with the weights on a rank's slots; nothing where every byte is that of the slot's expert.
inline std::optional<std::string> find_wrong_weights(const WeightStore& store, int rank) {
  const auto experts = store.placement().experts_of(rank);
  for (std::size_t slot = 0; slot < experts.size(); ++slot) {
    const std::span<std::byte> weights = store.weights(static_cast<std::int32_t>(slot));
    for (std::size_t idx = 0; idx < weights.size(); ++idx) {
      if (weights[idx] == weight_byte(experts[slot], idx)) continue;
      return fmt::format("rank {}, slot {}, expert {}: byte {} is wrong", rank, slot, experts[slot], idx);
    }
  }
  return std::nullopt;
}

inline std::vector<std::vector<std::int32_t>> by_rank(const balance::SlotTable& table) {
  std::vector<std::vector<std::int32_t>> ranks;
  for (std::int32_t rank = 0; rank < table.num_ranks(); ++rank) {
    const auto experts = table.experts_of(rank);
    ranks.emplace_back(experts.begin(), experts.end());
  }
  return ranks;
}

}  // namespace epistle::test
