// The scales of one row, from wherever the caller holds them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "dispatch/host/engine/row_mover.hpp"

namespace epistle::host {

/// Copies the scales of row `token`, `num_bytes` in all, to `target`, where they lie one behind the other.
inline void copy_scales(const ScaleSource& scales, std::int64_t token, std::int64_t num_bytes, std::byte* target) {
  const std::byte* source = scales.data + token * scales.row_stride;
  if (scales.column_stride == scales.element_bytes) {
    std::memcpy(target, source, static_cast<std::size_t>(num_bytes));
    return;
  }
  for (std::int64_t done = 0; done < num_bytes; done += scales.element_bytes, source += scales.column_stride) {
    std::memcpy(target + done, source, static_cast<std::size_t>(scales.element_bytes));
  }
}

}  // namespace epistle::host
