// Weights on a GPU that tell which expert they are of.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "epistle/migration.hpp"

#include "support/device_arena.hpp"
#include "unit/migrate/weights_for_tests.hpp"

namespace epistle::testing {

inline void fill_gpu_weights(const WeightStore& store, int rank, DeviceArena& arena) {
  const auto experts = store.placement().experts_of(rank);
  for (std::size_t slot = 0; slot < experts.size(); ++slot) {
    const std::span<std::byte> weights = store.weights(static_cast<std::int32_t>(slot));
    std::vector<std::byte> bytes(weights.size());
    for (std::size_t idx = 0; idx < bytes.size(); ++idx) bytes[idx] = test::weight_byte(experts[slot], idx);
    arena.upload(weights.data(), bytes.data(), static_cast<std::int64_t>(bytes.size()));
  }
}

/// As test::find_wrong_weights().
inline std::optional<std::string> find_wrong_gpu_weights(const WeightStore& store, int rank, DeviceArena& arena) {
  const auto experts = store.placement().experts_of(rank);
  for (std::size_t slot = 0; slot < experts.size(); ++slot) {
    const std::span<std::byte> weights = store.weights(static_cast<std::int32_t>(slot));
    const std::vector<std::byte> bytes = arena.read(weights.data(), static_cast<std::int64_t>(weights.size()));
    for (std::size_t idx = 0; idx < bytes.size(); ++idx) {
      if (bytes[idx] == test::weight_byte(experts[slot], idx)) continue;
      return fmt::format("rank {}, slot {}, expert {}: byte {} is wrong", rank, slot, experts[slot], idx);
    }
  }
  return std::nullopt;
}

}  // namespace epistle::testing
