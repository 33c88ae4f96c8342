#include "balance/balancedness.hpp"

#include <algorithm>
#include <numeric>

namespace epistle::balance {

double balancedness_of(std::span<const std::int64_t> rank_loads, std::int32_t num_holders) {
  const std::int64_t largest = rank_loads.empty() ? 0 : *std::max_element(rank_loads.begin(), rank_loads.end());
  if (largest <= 0 || num_holders <= 0) return 1.0;
  const std::int64_t total = std::accumulate(rank_loads.begin(), rank_loads.end(), std::int64_t{0});
  return static_cast<double>(total) / static_cast<double>(num_holders) / static_cast<double>(largest);
}

}  // namespace epistle::balance
