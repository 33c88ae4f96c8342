// Where the scales of a rank's received rows lie. Host and device code.
#pragma once

#include <cstdint>

#include "epistle/types.hpp"

namespace epistle {

/// Scales of `num_rows` rows, in rows, or in columns of 32-bit words. In columns, every matrix of `matrix_rows` rows
/// has its words column by column, each column filled up to 16 bytes.
class ScalePlaces {
 public:
  static constexpr std::int64_t kWordBytes = 4;
  /// Rows of a column are filled up to these, so that every column begins at a multiple of 16 bytes.
  static constexpr std::int64_t kColumnAlignmentRows = 4;

  ScalePlaces() = default;
  /// `row_bytes`: of one row's scales. `rows_per_block`: of a matrix of its own for every local expert; 0 = all rows
  /// are in one.
  EPISTLE_HOST_DEVICE constexpr ScalePlaces(ScaleOrder order, std::int64_t row_bytes, std::int64_t num_rows,
                                            std::int64_t rows_per_block) noexcept
      : row_bytes_(row_bytes),
        num_rows_(num_rows),
        rows_per_block_(rows_per_block),
        column_words_(padded(rows_per_block > 0 ? rows_per_block : num_rows)),
        in_columns_(order == ScaleOrder::kColumns) {}

  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr bool in_columns() const noexcept { return in_columns_; }
  /// Of the scales of one row.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t row_bytes() const noexcept { return row_bytes_; }
  /// Words of one row, in columns.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t num_words() const noexcept {
    return row_bytes_ / kWordBytes;
  }
  /// Words from one column to the next.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t column_stride() const noexcept { return column_words_; }
  /// Words from one block to the next; 0 where there is one.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t block_stride() const noexcept {
    return rows_per_block_ > 0 ? num_words() * column_words_ : 0;
  }

  /// Bytes from the first scale to word `word` of `row`.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t offset(std::int64_t row, std::int64_t word) const noexcept {
    if (!in_columns_) return row * row_bytes_ + word * kWordBytes;
    if (rows_per_block_ == 0) return (word * column_words_ + row) * kWordBytes;
    // Row numbers have 31 bits; a GPU divides 32 bits several times faster than 64.
    const auto block =
        static_cast<std::int64_t>(static_cast<std::uint32_t>(row) / static_cast<std::uint32_t>(rows_per_block_));
    return (block * block_stride() + word * column_words_ + row - block * rows_per_block_) * kWordBytes;
  }

  /// Bytes that all of them take.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t num_bytes() const noexcept {
    if (!in_columns_) return num_rows_ * row_bytes_;
    const std::int64_t num_blocks = rows_per_block_ > 0 ? num_rows_ / rows_per_block_ : 1;
    return num_blocks * row_bytes_ * column_words_;
  }

 private:
  [[nodiscard]] static EPISTLE_HOST_DEVICE constexpr std::int64_t padded(std::int64_t rows) noexcept {
    return (rows + kColumnAlignmentRows - 1) / kColumnAlignmentRows * kColumnAlignmentRows;
  }

  std::int64_t row_bytes_ = 0;
  std::int64_t num_rows_ = 0;
  std::int64_t rows_per_block_ = 0;
  std::int64_t column_words_ = 0;
  bool in_columns_ = false;
};

}  // namespace epistle
