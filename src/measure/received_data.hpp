// What a rank received, as plain views of host memory: of a lease, or of a copy of what lies on a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "epistle/received.hpp"
#include "epistle/views.hpp"

namespace epistle {

struct ReceivedData {
  RowDescription description;
  Rows rows;
  ScalesView scales;  ///< null without scales

  [[nodiscard]] std::int64_t num_rows() const noexcept { return description.num_rows; }
  /// Bytes of one row's scales, what fills them up to words included; 0 without.
  [[nodiscard]] std::int64_t scale_row_bytes() const noexcept {
    if (scales.data == nullptr) return 0;
    return (in_rows() ? scales.row_stride : scales.num_columns) * scale_element_bytes(scales.format);
  }
  /// Bytes of memory that all scales take, from the first on.
  [[nodiscard]] std::int64_t scale_bytes() const noexcept {
    if (scales.data == nullptr) return 0;
    if (in_rows()) return num_rows() * scale_row_bytes();
    const std::int64_t words = scales.rows_per_block > 0 ? num_rows() / scales.rows_per_block * scales.block_stride
                                                         : scales.num_columns * scales.column_stride;
    return words * scale_element_bytes(scales.format);
  }
  /// The scales of rows [begin, end), one row behind the other.
  [[nodiscard]] std::vector<std::byte> scales_by_row(std::int64_t begin, std::int64_t end) const;
  [[nodiscard]] std::vector<std::byte> scales_by_row() const { return scales_by_row(0, num_rows()); }
  /// Null without scales. The view is one to read; the memory is the rank's own buffer, which whoever checks it may
  /// overwrite.
  [[nodiscard]] std::byte* scale_data() const noexcept {
    return static_cast<std::byte*>(const_cast<void*>(scales.data));  // NOLINT(cppcoreguidelines-pro-type-const-cast)
  }
  [[nodiscard]] std::byte* row_data() const noexcept { return static_cast<std::byte*>(rows.data); }

 private:
  [[nodiscard]] bool in_rows() const noexcept { return scales.column_stride == 1; }
};

/// Valid as long as the lease is.
[[nodiscard]] inline ReceivedData data_of(const Received& received) {
  return {.description = received.description(), .rows = received.rows(), .scales = received.scales()};
}

}  // namespace epistle
