// How many of a number of independent bits are set, up to a bound.
#pragma once

#include <cstddef>
#include <vector>

namespace epistle {

/// Probabilities of 0, 1, ... set bits; what lies beyond the size is left out.
using BitCounts = std::vector<double>;

/// Of `size` entries, without any bit.
[[nodiscard]] inline BitCounts no_bits(std::size_t size) {
  BitCounts counts(size, 0.0);
  counts.front() = 1.0;
  return counts;
}

inline void add_bit(BitCounts& counts, double probability) {
  for (std::size_t idx = counts.size(); idx-- > 1;) {
    counts[idx] = counts[idx] * (1.0 - probability) + counts[idx - 1] * probability;
  }
  counts.front() *= 1.0 - probability;
}

/// Of the bits of both; they have one size.
[[nodiscard]] inline BitCounts joined(const BitCounts& a, const BitCounts& b) {
  BitCounts counts(a.size(), 0.0);
  for (std::size_t i = 0; i < a.size(); ++i) {
    for (std::size_t j = 0; i + j < counts.size(); ++j) counts[i + j] += a[i] * b[j];
  }
  return counts;
}

}  // namespace epistle
