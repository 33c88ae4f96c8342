// How many rows every rank has for every other one, and where they lie in the packed buffers. Pure: values in, values
// out.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "dispatch/cuda/device/device_types.hpp"
#include "dispatch/cuda/engine/buffer_carver.hpp"
#include "layout/dispatch_layout.hpp"

namespace epistle::nccl {

/// Rows that lie one behind the other.
struct Block {
  std::int64_t begin = 0;
  std::int64_t num_rows = 0;
};

/// The (token, rank) pairs of one handle. The sender packs the pairs for other ranks by destination; the receiver
/// numbers what it gets, its own pairs included, by source. Both keep the order of the tokens.
class PairTable {
 public:
  PairTable() = default;
  /// From the pairs [source, destination], where every pair of the routing fits.
  PairTable(int num_ranks, std::span<const std::int32_t> pairs);
  /// From what the device computed, by rank: counts pairs that keep a place although none of their rows fits, and knows
  /// the gaps that pairs without a place leave in the packed order.
  explicit PairTable(std::span<const cuda::HandleTotals> totals);

  [[nodiscard]] int num_ranks() const noexcept { return num_ranks_; }
  /// What `source` packs for `destination`; empty for itself.
  [[nodiscard]] Block packed(int source, int destination) const noexcept;
  /// The places of the pairs of `source` among those that `destination` receives.
  [[nodiscard]] Block received(int source, int destination) const noexcept;
  /// Pairs that `rank` receives, its own included.
  [[nodiscard]] std::int64_t num_received(int rank) const noexcept;
  /// Rows of the packed buffer of `rank`.
  [[nodiscard]] std::int64_t packed_end(int rank) const noexcept;

 private:
  [[nodiscard]] std::size_t at(int source, int destination) const noexcept {
    return static_cast<std::size_t>(source) * static_cast<std::size_t>(num_ranks_) +
           static_cast<std::size_t>(destination);
  }

  int num_ranks_ = 0;
  std::vector<std::int64_t> counts_;        ///< [source, destination]
  std::vector<std::int64_t> packed_begin_;  ///< [source, destination]
};

/// Where the (token, expert) rows lie that a flat sum of expert rows sends one by one; in device memory.
struct EntryTables {
  std::int32_t* packed_begin = nullptr;    ///< [pairs this rank packs + 1] first entry of each
  std::int32_t* received_begin = nullptr;  ///< [pairs this rank receives + 1] likewise; its own pairs have none
  std::int32_t* stage = nullptr;           ///< [num_tokens, top_k] row of the stage; -1 = own rank, or none
};

/// Entries for and from each rank; in host memory that the device can write.
struct EntryCounts {
  std::int32_t sent[cuda::kMaxRanks];      ///< sent back by this rank, to the pairs' sources
  std::int32_t returned[cuda::kMaxRanks];  ///< that come back to this rank
};

/// The tables, in one allocation.
void carve_entries(cuda::BufferCarver& carver, const DispatchLayout& layout, EntryTables& tables) noexcept;

}  // namespace epistle::nccl
