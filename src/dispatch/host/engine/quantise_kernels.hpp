// The loop that quantises a row, vectorised like those of row_kernels.hpp: the arithmetic of layout/fp8_blocks.hpp on
// every instruction set, to the bit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "epistle/types.hpp"

namespace epistle::host {

struct QuantiseJob {
  const std::byte* source = nullptr;  ///< bf16
  std::int64_t hidden = 0;            ///< elements; a multiple of 8
  ScaleFormat format = ScaleFormat::kFp32;
  bool powers_of_two = false;
  std::byte* row = nullptr;     ///< e4m3, `hidden` bytes
  std::byte* scales = nullptr;  ///< fp8::scale_row_bytes() bytes, in rows
};

void quantise_row(const QuantiseJob& job) noexcept;

}  // namespace epistle::host
