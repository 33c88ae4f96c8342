// What a row of bf16 becomes on a wire of Fp8Blocks, by the text of the contract in epistle/config.hpp: the scale from
// logarithms, every element by searching the table of all values that e4m3 has. It shares nothing with the arithmetic
// that the dispatchers use (layout/fp8_blocks.hpp), which is compared with this.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "epistle/types.hpp"

#include "dispatch/call/resolved_config.hpp"

namespace epistle::reference {

/// Of one block: the factor of its elements, and the bytes of its scale.
struct QuantisedScale {
  float inverse = 0.0F;
  std::vector<std::byte> bytes;
};
[[nodiscard]] QuantisedScale scale_of(const std::vector<float>& block, ScaleFormat format, bool powers_of_two);

/// The e4m3 nearest to `value`, ties to even.
[[nodiscard]] std::uint8_t nearest_e4m3(float value);

/// Writes `config.hidden` bytes to `target`, and their scales, in rows, to `scales`: as many bytes as a row has there,
/// zeros behind the last. The row may begin anywhere.
void quantise_row(const ResolvedConfig& config, const std::byte* row, std::byte* target, std::byte* scales);

}  // namespace epistle::reference
