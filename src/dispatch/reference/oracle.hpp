// What dispatch and combine must give, computed in a single address space by the shortest loops that follow the text of
// the contract. Slow on purpose. Everything else is compared with this, bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "epistle/placement.hpp"
#include "epistle/routing.hpp"
#include "epistle/types.hpp"

#include "dispatch/call/resolved_config.hpp"

namespace epistle::reference {

/// Where an output row comes from; all -1 at padding.
struct OutputRow {
  std::int32_t src_rank = -1;
  std::int32_t src_token = -1;
  std::int32_t topk_idx = -1;  ///< expert layouts

  friend bool operator==(const OutputRow&, const OutputRow&) = default;
};

/// One rank's share of the layout.
struct RankLayout {
  std::vector<OutputRow> rows;
  std::vector<std::int32_t> expert_counts;
  std::vector<std::int32_t> expert_begin;  ///< [num_local_experts + 1]; expert layouts
  std::vector<std::int32_t> expert_dropped;
  std::vector<std::int32_t> dst_row;  ///< [num_tokens, top_k] of this rank as a source; -1 = none or dropped
  std::vector<SlotRef> slots;         ///< [num_tokens, top_k] that serve the entries; kNowhere without an expert
};

inline constexpr SlotRef kNowhere{-1, -1};

/// How the tokens are routed beside their tables.
struct RoutingStep {
  const Placement* placement = nullptr;  ///< null: that of the configuration
  std::uint64_t step_seed = 0;           ///< of all ranks
  std::vector<int> masked = {};          ///< ranks that are left out, with their tokens and their experts
};

/// The layout of all ranks from all their tables.
[[nodiscard]] std::vector<RankLayout> layout_of(const ResolvedConfig& config, std::span<const RoutingTable> tables,
                                                const RoutingStep& step = {});

/// Reads one expert output row of a rank as floats.
using RowReader = std::function<void(int rank, std::int32_t row, std::vector<float>& values)>;

/// One token's place in the layout.
struct TokenPlaces {
  std::span<const std::int32_t> ranks;    ///< [top_k] that serve the positions; of no meaning without a row
  std::span<const float> weights;         ///< [top_k]
  std::span<const std::int32_t> dst_row;  ///< [top_k]
};

/// What combine gives for one token: combine_hidden elements of combine_dtype.
void combine_token(const ResolvedConfig& config, const TokenPlaces& token, const RowReader& read_row, bool weighted,
                   std::byte* out);

/// Dot product of two rows in the order that Dispatcher::combine_backward documents.
[[nodiscard]] float dot_in_lanes(std::span<const float> a, std::span<const float> b);

/// One element of a row, as a float; and back, rounded. kBf16, kFp16, kFp32, and kFp8E4m3 for reading.
[[nodiscard]] float read_element(DType dtype, const std::byte* row, std::int64_t idx);
void write_element(DType dtype, std::byte* row, std::int64_t idx, float value);

}  // namespace epistle::reference
