// Compares what a dispatcher gave with the oracle, bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "epistle/received.hpp"
#include "epistle/routing.hpp"

#include "dispatch/call/resolved_config.hpp"
#include "dispatch/reference/oracle.hpp"

namespace epistle {

/// The first difference found, or nothing.
using Mismatch = std::optional<std::string>;

[[nodiscard]] Mismatch compare_bytes(const void* actual, const void* expected, std::size_t num_bytes,
                                     const std::string& what);

/// Some of the rows or tokens of a rank: [begin, end).
struct RowRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

/// What every rank puts in, and where the oracle puts it. Constant after its construction: ranks that are threads share
/// one.
class Expectation {
 public:
  /// Keeps no reference to the arguments.
  Expectation(const ResolvedConfig& config, std::vector<RoutingTable> tables, const reference::RoutingStep& step = {});

  [[nodiscard]] const ResolvedConfig& config() const noexcept { return config_; }
  [[nodiscard]] const RoutingTable& table(int rank) const { return tables_[static_cast<std::size_t>(rank)]; }
  [[nodiscard]] const reference::RankLayout& layout(int rank) const { return layout_[static_cast<std::size_t>(rank)]; }
  [[nodiscard]] int num_ranks() const noexcept { return static_cast<int>(tables_.size()); }

  /// The description of the rows that `rank` received: origins, weights, local experts, counts, begins, drops. In host
  /// memory.
  [[nodiscard]] Mismatch check_description(int rank, const RowDescription& description) const;

  /// Writes the source's row.
  using SourceRow = std::function<void(int src_rank, std::int64_t src_token, std::byte* row)>;

  /// What `rank` received: `rows` is its row 0, and those in `range` are compared, padding (zero) included unless
  /// the configuration leaves it as it was.
  struct RowsToCheck {
    const std::byte* rows = nullptr;
    std::int64_t row_bytes = 0;
    RowRange range;
    std::string_view what;  ///< names the rows in a mismatch
  };
  [[nodiscard]] Mismatch check_rows(int rank, const RowsToCheck& received, const SourceRow& source_row) const;

  /// All rows of `rank`.
  [[nodiscard]] RowRange all_rows(int rank) const { return {0, static_cast<std::int64_t>(layout(rank).rows.size())}; }

  /// Writes the sums that combine must give for the tokens of `range`, one after the other.
  void combine(int rank, RowRange range, const reference::RowReader& read_row, bool weighted, std::byte* out) const;

 private:
  [[nodiscard]] Mismatch check_row_description(int rank, const RowDescription& description, std::size_t row) const;

  ResolvedConfig config_;
  std::vector<RoutingTable> tables_;
  bool is_placed_;
  std::uint64_t placement_generation_;
  std::vector<reference::RankLayout> layout_;
};

}  // namespace epistle
