// The dispatch layout of one routing, computed from the counts of all ranks: where each rank's rows begin at each other
// rank, what fits, and what buffers must hold. Every rank computes the same tables from the same counts.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "layout/dispatch_layout.hpp"

namespace epistle {

/// Counts as one rank announces them: views into counts_entries() int32 values, in this order.
template <typename Count>
struct CountsView {
  std::span<Count> tokens_to_rank;  ///< [num_ranks] tokens with at least one expert there
  std::span<Count> rows_to_expert;  ///< [num_experts]
  std::span<Count> num_tokens;      ///< [1] that this rank routes
  std::span<Count> pairs_to_rank;   ///< [num_ranks] tokens of which at least one assignment fits there (second round)
  std::span<Count> dropped_of_expert;  ///< [num_experts] (second round)
};

/// The parts of one rank's announcement that starts at `entries`.
template <typename Count>
[[nodiscard]] CountsView<Count> counts_view(const LayoutParams& params, Count* entries) noexcept {
  const auto num_ranks = static_cast<std::size_t>(params.num_ranks);
  const auto num_experts = static_cast<std::size_t>(params.num_experts);
  Count* second_round = entries + num_ranks + num_experts + 1;
  return {.tokens_to_rank = {entries, num_ranks},
          .rows_to_expert = {entries + num_ranks, num_experts},
          .num_tokens = {entries + num_ranks + num_experts, 1},
          .pairs_to_rank = {second_round, num_ranks},
          .dropped_of_expert = {second_round + num_ranks, num_experts}};
}
using ConstCountsView = CountsView<const std::int32_t>;

class LayoutTables {
 public:
  /// Takes the memory that compute() needs.
  void resize(const DispatchLayout& layout);
  /// Computes everything from `counts` (one view per rank; only the first round is read). Allocates only when the
  /// tables were smaller before. `slots_of_rank`: where experts are placed, the slots that each rank has; blocks are
  /// received for no others.
  void compute(const DispatchLayout& layout, std::span<const ConstCountsView> counts,
               std::span<const std::int32_t> slots_of_rank = {});

  /// First output row, on the rank of `column`, of what `src_rank` sends there; column: destination rank (token_major)
  /// or global expert.
  [[nodiscard]] std::int32_t row_begin(int src_rank, int column) const noexcept {
    return row_begin_[at(src_rank, column)];
  }
  /// How many of `src_rank`'s rows for `column` have a place. The rows beyond are dropped, last rows first.
  [[nodiscard]] std::int32_t num_kept(int src_rank, int column) const noexcept {
    return num_kept_[at(src_rank, column)];
  }
  /// First output row of an expert's group on its rank (expert layouts).
  [[nodiscard]] std::int64_t group_begin(int expert) const noexcept {
    return group_begin_[static_cast<std::size_t>(expert)];
  }
  /// Rows of `rank`'s output, padding included.
  [[nodiscard]] std::int64_t output_rows(int rank) const noexcept {
    return output_rows_[static_cast<std::size_t>(rank)];
  }
  /// Rows of `rank`'s output that carry a token.
  [[nodiscard]] std::int64_t content_rows(int rank) const noexcept {
    return content_rows_[static_cast<std::size_t>(rank)];
  }
  /// Rows for `rank` that have no place there: (token, rank) pairs in token_major, else assignments.
  [[nodiscard]] std::int64_t overflow_rows(int rank) const noexcept {
    return overflow_rows_[static_cast<std::size_t>(rank)];
  }
  /// Whether any rank has rows without a place.
  [[nodiscard]] bool has_overflow() const noexcept {
    return std::any_of(overflow_rows_.begin(), overflow_rows_.end(), [](std::int64_t rows) { return rows != 0; });
  }
  [[nodiscard]] int num_columns() const noexcept { return num_columns_; }

 private:
  [[nodiscard]] std::size_t at(int src_rank, int column) const noexcept {
    return static_cast<std::size_t>(src_rank) * static_cast<std::size_t>(num_columns_) +
           static_cast<std::size_t>(column);
  }
  void place_column(const DispatchLayout& layout, std::span<const ConstCountsView> counts, int column, int dst_rank,
                    std::int64_t group_begin);

  int num_columns_ = 0;
  std::vector<std::int32_t> row_begin_;  ///< [num_ranks, num_columns]
  std::vector<std::int32_t> num_kept_;   ///< [num_ranks, num_columns]
  std::vector<std::int64_t> group_begin_;
  std::vector<std::int64_t> group_counts_;  ///< scratch
  std::vector<std::int64_t> group_begins_;  ///< scratch
  std::vector<std::int64_t> output_rows_;
  std::vector<std::int64_t> content_rows_;
  std::vector<std::int64_t> overflow_rows_;
};

}  // namespace epistle
