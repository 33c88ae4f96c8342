// Builds one layer of a trace from its values as they come, in any order of keys, keeping only the rows asked for.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string_view>
#include <vector>

#include "epistle/trace.hpp"

#include "routing/trace_stream.hpp"

namespace epistle {

enum class TraceHeader : std::size_t { kLayer, kNumExperts, kTopK, kNumTokens };
inline constexpr std::array<std::string_view, 4> kTraceHeaderNames = {"layer", "num_experts", "top_k", "num_tokens"};

enum class TraceColumn : std::size_t { kExpertIds, kWeights };
inline constexpr std::array<std::string_view, 2> kTraceColumnNames = {"expert_ids", "weights"};

/// Rows of a layer: [0, head_end) and [begin, end). The first part is what a window that wraps round takes.
struct RowSelection {
  std::int64_t head_end = 0;
  std::int64_t begin = 0;
  std::int64_t end = 0;

  [[nodiscard]] bool contains(std::int64_t row) const noexcept { return row < head_end || (row >= begin && row < end); }
};

class TraceLayerBuilder {
 public:
  /// Complaints go through `source`, which knows the line.
  explicit TraceLayerBuilder(TraceStream& source) : source_(&source) {}

  void set_header(TraceHeader header, std::int64_t value);
  [[nodiscard]] std::optional<std::int64_t> header(TraceHeader header) const noexcept;

  /// Rows to keep; none until then. To be called before the first column begins.
  void keep_rows(const RowSelection& selection) noexcept { kept_rows_ = selection; }

  void begin_column(TraceColumn name);
  void begin_row(TraceColumn name);
  void add_expert_id(std::int64_t id);
  void add_weight(double weight);
  void end_row(TraceColumn name);

  /// Checks what could not be checked on the way; to be called once, after the last value.
  void finish();

  [[nodiscard]] TraceLayerSummary take_summary();
  /// The rows kept, in the order of the file.
  [[nodiscard]] RoutingTable take_rows();

 private:
  struct Column {
    bool present = false;
    std::int64_t num_rows = 0;
    std::int64_t row_width = 0;  // of the row being read
    bool keeps_row = false;
  };

  [[nodiscard]] Column& column(TraceColumn name) noexcept { return columns_[static_cast<std::size_t>(name)]; }
  [[nodiscard]] const Column& column(TraceColumn name) const noexcept {
    return columns_[static_cast<std::size_t>(name)];
  }
  [[nodiscard]] std::int64_t expected_width() const noexcept;
  void check_headers() const;
  void check_num_rows(TraceColumn name) const;
  void count_entry(TraceColumn name);
  void count_expert(std::int64_t id);

  TraceStream* source_;
  std::array<std::optional<std::int64_t>, kTraceHeaderNames.size()> headers_;
  std::array<Column, kTraceColumnNames.size()> columns_;
  std::int64_t first_row_width_ = -1;  // -1 = no row read yet
  RowSelection kept_rows_;
  std::vector<std::int32_t> expert_ids_;
  std::vector<float> weights_;
  std::int64_t num_dropped_ = 0;
  std::vector<std::int64_t> tokens_per_expert_;   // grows with the ids seen until num_experts is known
  std::vector<std::int64_t> last_row_of_expert_;  // 1 + the last row that named the expert; finds repetitions
};

}  // namespace epistle
