// From a table of experts to places: which row every assignment gets, and what a receiver is told of its rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "dispatch/host/engine/host_context.hpp"
#include "dispatch/host/engine/host_handle.hpp"
#include "layout/layout_tables.hpp"

namespace epistle::host {

/// What came of placing.
struct PlaceCounts {
  std::span<std::int32_t> pairs_to_rank;      ///< [num_ranks] tokens of which at least one assignment fits there
  std::span<std::int32_t> dropped_of_expert;  ///< [num_experts]
  std::int64_t dropped = 0;
  std::int64_t remote_assignments = 0;  ///< that fit, to other ranks
};

class TokenPlaces {
 public:
  explicit TokenPlaces(HostContext& context);

  /// Fills in the places of a table whose ids and weights are there. Tokens are taken in their order; those of a table
  /// that goes to one domain only get the places that they have in the table of all tokens. Allocates only where the
  /// table had less room before.
  void place(const LayoutTables& tables, int src_rank, TokenTable& table, PlaceCounts& counts);

  /// Where the record of a row of a rank is written; `column`: what its layout has rows by, the rank or the expert.
  using RecordPlace = std::function<std::byte*(int dst_rank, std::int32_t column, std::int32_t row)>;

  /// Writes records of all rows of a table to where they are received.
  void write_records(const TokenTable& table, int src_rank);
  void write_records(const TokenTable& table, int src_rank, const RecordPlace& place);

 private:
  template <typename Place>
  void write_all(const TokenTable& table, int src_rank, const Place& place);
  template <typename Place>
  void write_token_records(const TokenTable& table, int src_rank, const Place& place);
  template <typename Place>
  void write_row_records(const TokenTable& table, int src_rank, const Place& place);

  HostContext* context_;
  const DispatchLayout& layout_;
  std::size_t top_k_;
  // Scratch, sized once.
  std::vector<std::int64_t> last_token_to_rank_;
  std::vector<std::int32_t> num_placed_;        ///< [columns] rows placed so far
  std::vector<std::int32_t> send_of_rank_;      ///< [num_ranks] entry of `sends`, -1 = dropped; valid for
                                                ///< last_token_to_rank_
  std::vector<std::int32_t> next_row_;          ///< [num_ranks] likewise
  std::vector<std::int32_t> rank_of_position_;  ///< [top_k] of one token; -1 = none
};

}  // namespace epistle::host
