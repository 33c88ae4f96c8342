// Views: a pointer with sizes, strides and a type. They own nothing, and say enough to be checked. All pointers are
// memory of the dispatcher's device. Strides count elements (bytes for DType::kRaw); 0 means "one behind the other".
#pragma once

#include <cstdint>

#include "epistle/types.hpp"

namespace epistle {

/// Rows to read: [num_rows, hidden] of `dtype`, `stride` elements from one row to the next. Elements of a row lie one
/// behind the other. Rows that begin at multiples of 16 bytes are faster, not required.
struct ConstRows {
  const void* data = nullptr;
  std::int64_t num_rows = 0;
  std::int64_t hidden = 0;
  DType dtype = DType::kBf16;
  std::int64_t stride = 0;

  [[nodiscard]] constexpr std::int64_t row_bytes() const noexcept { return hidden * dtype_bytes(dtype); }
  [[nodiscard]] constexpr std::int64_t stride_bytes() const noexcept {
    return (stride != 0 ? stride : hidden) * dtype_bytes(dtype);
  }
};

/// Rows to write, likewise.
struct Rows {
  void* data = nullptr;
  std::int64_t num_rows = 0;
  std::int64_t hidden = 0;
  DType dtype = DType::kBf16;
  std::int64_t stride = 0;

  [[nodiscard]] constexpr std::int64_t row_bytes() const noexcept { return hidden * dtype_bytes(dtype); }
  [[nodiscard]] constexpr std::int64_t stride_bytes() const noexcept {
    return (stride != 0 ? stride : hidden) * dtype_bytes(dtype);
  }
  constexpr operator ConstRows() const noexcept {
    return {data, num_rows, hidden, dtype, stride};
  }  // NOLINT(*-explicit-*)
};

/// The scales of quantised rows: [num_rows, num_columns] elements of `format`. Element (row, column) is row *
/// row_stride + column * column_stride elements from `data`, so both row and column order can be said. With
/// `rows_per_block`, every that many rows are a block: they lie so by themselves, and the next block begins
/// `block_stride` elements behind.
struct ScalesView {
  const void* data = nullptr;
  std::int64_t num_rows = 0;
  std::int64_t num_columns = 0;
  ScaleFormat format = ScaleFormat::kFp32;
  std::int64_t row_stride = 0;  ///< 0 = num_columns
  std::int64_t column_stride = 1;
  std::int64_t rows_per_block = 0;  ///< 0 = all rows; of received scales only
  std::int64_t block_stride = 0;

  /// Elements from `data` to element (row, column).
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t element(std::int64_t row,
                                                                   std::int64_t column) const noexcept {
    const std::int64_t block = rows_per_block > 0 ? row / rows_per_block : 0;
    const std::int64_t row_in_block = row - block * rows_per_block;
    return block * block_stride + row_in_block * (row_stride != 0 ? row_stride : num_columns) + column * column_stride;
  }
};

/// A router's choice: [num_tokens, top_k] expert ids, kNoExpert for "none"; an expert may stand only once in a token's
/// row. `stride` ids from one token to the next.
struct IdsView {
  const void* data = nullptr;
  std::int64_t num_tokens = 0;
  std::int32_t top_k = 0;
  IdType type = IdType::kInt32;
  std::int64_t stride = 0;

  constexpr IdsView() = default;
  constexpr IdsView(const std::int32_t* ids, std::int64_t tokens, std::int32_t k, std::int64_t id_stride = 0) noexcept
      : data(ids), num_tokens(tokens), top_k(k), stride(id_stride) {}
  constexpr IdsView(const std::int64_t* ids, std::int64_t tokens, std::int32_t k, std::int64_t id_stride = 0) noexcept
      : data(ids), num_tokens(tokens), top_k(k), type(IdType::kInt64), stride(id_stride) {}
};

/// Routing weights [num_tokens, top_k] that go with the ids, fp32; null means "all 1". NaN and infinities are carried
/// through. `stride` weights from one token to the next, 0 = top_k.
struct WeightsView {
  const float* data = nullptr;
  std::int64_t stride = 0;

  constexpr WeightsView() = default;
  constexpr WeightsView(const float* weights, std::int64_t weight_stride = 0) noexcept  // NOLINT(*-explicit-*)
      : data(weights), stride(weight_stride) {}
};

}  // namespace epistle
