// Arrays of numbers in NumPy's .npy format, versions 1 to 3.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace epistle::balance {

struct NpyArray {
  std::vector<std::int64_t> shape;
  std::vector<double> values;  ///< row-major
};

/// By the bytes that every such file begins with.
[[nodiscard]] bool is_npy(std::string_view bytes) noexcept;

/// Integers of 1 to 8 bytes, floating point of 4 and 8; little-endian. Throws kCorruptInput, which begins with `name`.
[[nodiscard]] NpyArray parse_npy(std::string_view bytes, std::string_view name);

}  // namespace epistle::balance
