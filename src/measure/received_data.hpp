// What a rank received, as plain views of host memory: of a lease, or of a copy of what lies on a GPU.
#pragma once

#include <cstdint>

#include "epistle/received.hpp"
#include "epistle/views.hpp"

namespace epistle {

struct ReceivedData {
  RowDescription description;
  Rows rows;
  ScalesView scales;  ///< null without scales; row by row

  [[nodiscard]] std::int64_t num_rows() const noexcept { return description.num_rows; }
  /// Bytes of one row's scales; 0 without.
  [[nodiscard]] std::int64_t scale_row_bytes() const noexcept {
    return scales.data == nullptr ? 0 : scales.num_columns * scale_element_bytes(scales.format);
  }
  /// Null without scales. The view is one to read; the memory is the rank's own buffer, which whoever checks it may
  /// overwrite.
  [[nodiscard]] std::byte* scale_rows() const noexcept {
    return static_cast<std::byte*>(const_cast<void*>(scales.data));  // NOLINT(cppcoreguidelines-pro-type-const-cast)
  }
  [[nodiscard]] std::byte* row_data() const noexcept { return static_cast<std::byte*>(rows.data); }
};

/// Valid as long as the lease is.
[[nodiscard]] inline ReceivedData data_of(const Received& received) {
  return {.description = received.description(), .rows = received.rows(), .scales = received.scales()};
}

}  // namespace epistle
