#include "support/strided.hpp"

#include <cstring>
#include <limits>

#include <fmt/format.h>

namespace epistle::testing {

template <typename Visit>
void RowsBuffer::for_each_row(const Visit& visit) {
  if (row_bytes() == 0) return;
  for (std::int64_t row = 0; row < shape_.num_rows; ++row) {
    visit(bytes_.data() + row * stride_ * dtype_bytes(shape_.dtype), row * row_bytes());
  }
}

RowsBuffer::RowsBuffer(const Shape& shape, const std::vector<std::byte>& compact) : RowsBuffer(shape) {
  for_each_row([&](std::byte* row, std::int64_t offset) {
    std::memcpy(row, compact.data() + offset, static_cast<std::size_t>(row_bytes()));
  });
}

RowsBuffer::RowsBuffer(const Shape& shape) : shape_(shape) {
  // Three elements more: rows then begin anywhere but at multiples of 16 bytes.
  stride_ = shape.strided ? shape.hidden + 3 : shape.hidden;
  bytes_.assign(static_cast<std::size_t>(shape.num_rows * stride_ * dtype_bytes(shape.dtype)), kGap);
}

std::vector<std::byte> RowsBuffer::compact() {
  std::vector<std::byte> all(static_cast<std::size_t>(shape_.num_rows * row_bytes()));
  for_each_row([&](const std::byte* row, std::int64_t offset) {
    std::memcpy(all.data() + offset, row, static_cast<std::size_t>(row_bytes()));
  });
  return all;
}

Mismatch RowsBuffer::check_gaps(const std::string& what) {
  Mismatch found;
  for_each_row([&](const std::byte* row, std::int64_t offset) {
    const std::int64_t end = stride_ * dtype_bytes(shape_.dtype);
    for (std::int64_t idx = row_bytes(); idx < end && !found; ++idx) {
      if (row[idx] != kGap) found = fmt::format("{}: the gap behind row {} was written", what, offset / row_bytes());
    }
  });
  return found;
}

ScalesBuffer::ScalesBuffer(std::int64_t num_rows, std::int64_t row_bytes, ScaleFormat format, bool strided,
                           const std::vector<std::byte>& compact) {
  if (row_bytes == 0) return;
  const std::int64_t element_bytes = scale_element_bytes(format);
  const std::int64_t num_columns = row_bytes / element_bytes;
  view_ = {.num_rows = num_rows, .num_columns = num_columns, .format = format};
  if (!strided) {
    bytes_ = compact;
  } else {
    view_.row_stride = 1;
    view_.column_stride = num_rows + 2;
    bytes_.assign(static_cast<std::size_t>(num_columns * view_.column_stride * element_bytes), kGap);
    for (std::int64_t row = 0; row < num_rows; ++row) {
      for (std::int64_t column = 0; column < num_columns; ++column) {
        std::memcpy(bytes_.data() + (row + column * view_.column_stride) * element_bytes,
                    compact.data() + (row * num_columns + column) * element_bytes,
                    static_cast<std::size_t>(element_bytes));
      }
    }
  }
  view_.data = bytes_.data();
}

RoutingBuffer::RoutingBuffer(const RoutingTable& table, IdType type, bool strided) : table_(table), type_(type) {
  const auto top_k = static_cast<std::size_t>(table.top_k);
  const std::size_t id_stride = strided ? top_k + 2 : top_k;
  const std::size_t weight_stride = strided ? top_k + 1 : top_k;
  const auto num_tokens = static_cast<std::size_t>(table.num_tokens);
  // In the gaps stands what would be refused, or seen in every sum.
  ids_.assign(num_tokens * id_stride, std::numeric_limits<std::int32_t>::max());
  weights_.assign(num_tokens * weight_stride, std::numeric_limits<float>::quiet_NaN());
  for (std::size_t token = 0; token < num_tokens; ++token) {
    for (std::size_t position = 0; position < top_k; ++position) {
      ids_[token * id_stride + position] = table.expert_ids[token * top_k + position];
      weights_[token * weight_stride + position] = table.weights[token * top_k + position];
    }
  }
  wide_ids_.assign(ids_.begin(), ids_.end());
  if (!strided) return;
  id_stride_ = static_cast<std::int64_t>(id_stride);
  weight_stride_ = static_cast<std::int64_t>(weight_stride);
}

}  // namespace epistle::testing
