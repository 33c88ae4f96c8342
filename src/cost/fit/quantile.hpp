// Order statistics of errors.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace epistle {

/// The value below which a share of the values lies (0 = the least, 1 = the largest), linear between two of them. There
/// must be a value.
[[nodiscard]] inline double quantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  const double position = share * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::size_t>(position);
  const std::size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (position - static_cast<double>(below)) * (values[above] - values[below]);
}

}  // namespace epistle
