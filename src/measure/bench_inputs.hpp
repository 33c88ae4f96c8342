// What one rank puts into a benchmark: payload rows, expert outputs and room for the sums, all from the seed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "epistle/views.hpp"

#include "dispatch/call/resolved_config.hpp"
#include "measure/pattern.hpp"

namespace epistle {

class BenchInputs {
 public:
  struct Shape {
    int rank = 0;
    std::uint64_t seed = 1;
    std::int64_t num_tokens = 0;
    ResolvedConfig config = {};
  };

  explicit BenchInputs(const Shape& shape);

  [[nodiscard]] const Shape& shape() const noexcept { return shape_; }
  [[nodiscard]] std::int64_t row_bytes() const noexcept { return row_bytes_; }
  [[nodiscard]] std::int64_t scale_row_bytes() const noexcept { return scale_row_bytes_; }
  /// Of an expert output.
  [[nodiscard]] std::int64_t output_row_bytes() const noexcept { return output_row_bytes_; }

  // What dispatch takes, and where combine writes: here, or wherever a copy of it lies.

  [[nodiscard]] ConstRows tokens() const noexcept { return tokens_at(rows_.data()); }
  [[nodiscard]] ScalesView scales() const noexcept { return scales_at(scales_.data()); }
  [[nodiscard]] Rows out_rows() noexcept { return out_rows_at(out_.data()); }
  [[nodiscard]] ConstRows tokens_at(const void* rows) const noexcept;
  [[nodiscard]] ScalesView scales_at(const void* scales) const noexcept;
  [[nodiscard]] Rows out_rows_at(void* out) const noexcept;

  /// The bytes of out_rows().
  [[nodiscard]] std::vector<std::byte>& out() noexcept { return out_; }

  /// Writes expert outputs for `num_rows` rows of this rank to `rows`.
  void fill_expert_outputs(std::byte* rows, std::int64_t num_rows) const noexcept;

  /// Writes the row that any rank gives for a token: any bytes, or finite values where the wire quantises them.
  void fill_token(int rank, std::int64_t token, std::byte* row) const noexcept;

  /// The key of a row's content; any rank can name any rank's rows.
  [[nodiscard]] RowKey key(RowStream stream, int rank, std::int64_t row) const noexcept {
    return {.seed = shape_.seed, .stream = stream, .rank = rank, .row = row};
  }

 private:
  Shape shape_;
  std::int64_t row_bytes_ = 0;
  std::int64_t scale_row_bytes_ = 0;
  std::int64_t output_row_bytes_ = 0;
  std::vector<std::byte> rows_;
  std::vector<std::byte> scales_;
  std::vector<std::byte> out_;
};

}  // namespace epistle
