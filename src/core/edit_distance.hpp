// How far two names are apart, for "did you mean".
#pragma once

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <string_view>
#include <utility>
#include <vector>

namespace epistle {

/// Least number of characters to insert, remove or replace (Levenshtein).
[[nodiscard]] inline std::size_t edit_distance(std::string_view left, std::string_view right) {
  std::vector<std::size_t> row(right.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t left_idx = 0; left_idx < left.size(); ++left_idx) {
    std::size_t diagonal = row[0];
    row[0] = left_idx + 1;
    for (std::size_t right_idx = 0; right_idx < right.size(); ++right_idx) {
      const std::size_t replaced = diagonal + (left[left_idx] == right[right_idx] ? 0 : 1);
      diagonal = row[right_idx + 1];
      row[right_idx + 1] = std::min({replaced, diagonal + 1, row[right_idx] + 1});
    }
  }
  return row.back();
}

}  // namespace epistle
