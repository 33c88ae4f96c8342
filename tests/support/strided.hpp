// What calls take and give, in memory with gaps or without: the bits must not depend on it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "epistle/routing.hpp"
#include "epistle/views.hpp"

#include "measure/received_data.hpp"
#include "measure/verify.hpp"

namespace epistle::testing {

inline constexpr std::byte kGap{0xc3};

/// Rows and what lies between them.
class RowsBuffer {
 public:
  struct Shape {
    std::int64_t num_rows = 0;
    std::int64_t hidden = 0;
    DType dtype = DType::kBf16;
    bool strided = false;
  };

  /// `compact`: the rows, one behind the other.
  RowsBuffer(const Shape& shape, const std::vector<std::byte>& compact);
  /// Filled with a pattern, for a call to write to.
  explicit RowsBuffer(const Shape& shape);

  [[nodiscard]] Rows view() noexcept {
    return {.data = bytes_.data(),
            .num_rows = shape_.num_rows,
            .hidden = shape_.hidden,
            .dtype = shape_.dtype,
            .stride = shape_.strided ? stride_ : 0};
  }
  /// The rows, one behind the other.
  [[nodiscard]] std::vector<std::byte> compact();
  /// What was written between the rows.
  [[nodiscard]] Mismatch check_gaps(const std::string& what);

 private:
  [[nodiscard]] std::int64_t row_bytes() const { return shape_.hidden * dtype_bytes(shape_.dtype); }
  template <typename Visit>
  void for_each_row(const Visit& visit);

  Shape shape_;
  std::int64_t stride_ = 0;
  std::vector<std::byte> bytes_;
};

/// Scales row by row; strided: column by column, with a gap behind every column.
class ScalesBuffer {
 public:
  ScalesBuffer(std::int64_t num_rows, std::int64_t row_bytes, ScaleFormat format, bool strided,
               const std::vector<std::byte>& compact);

  /// Null without scales.
  [[nodiscard]] ScalesView view() const noexcept { return view_; }

 private:
  ScalesView view_;
  std::vector<std::byte> bytes_;
};

/// A routing table as ids of either width, and weights.
class RoutingBuffer {
 public:
  RoutingBuffer(const RoutingTable& table, IdType type, bool strided);

  [[nodiscard]] IdsView ids() const noexcept {
    if (type_ == IdType::kInt64) return {wide_ids_.data(), table_.num_tokens, table_.top_k, id_stride_};
    return {ids_.data(), table_.num_tokens, table_.top_k, id_stride_};
  }
  [[nodiscard]] WeightsView weights() const noexcept { return {weights_.data(), weight_stride_}; }

 private:
  const RoutingTable& table_;
  IdType type_;
  std::int64_t id_stride_ = 0;
  std::int64_t weight_stride_ = 0;
  std::vector<std::int32_t> ids_;
  std::vector<std::int64_t> wide_ids_;
  std::vector<float> weights_;
};

}  // namespace epistle::testing
