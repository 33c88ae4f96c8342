#include "measure/received_data.hpp"

#include <cstring>

namespace epistle {

std::vector<std::byte> ReceivedData::scales_by_row(std::int64_t begin, std::int64_t end) const {
  const std::int64_t row_bytes = scale_row_bytes();
  // In rows what fills a row up belongs to it.
  const std::int64_t piece_bytes = in_rows() ? row_bytes : scale_element_bytes(scales.format);
  std::vector<std::byte> all(static_cast<std::size_t>((end - begin) * row_bytes));
  std::byte* target = all.data();
  for (std::int64_t row = begin; row < end; ++row) {
    for (std::int64_t column = 0; column * piece_bytes < row_bytes; ++column, target += piece_bytes) {
      std::memcpy(target, scale_data() + scales.element(row, column) * scale_element_bytes(scales.format),
                  static_cast<std::size_t>(piece_bytes));
    }
  }
  return all;
}

}  // namespace epistle
