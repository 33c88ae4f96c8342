#include "measure/statistics.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace epistle {

Summary summarize(std::vector<double> samples) {
  if (samples.empty()) return {};
  std::sort(samples.begin(), samples.end());
  const std::size_t middle = samples.size() / 2;
  const double median = samples.size() % 2 == 1 ? samples[middle] : (samples[middle - 1] + samples[middle]) / 2.0;
  const auto nearest_rank = [&](double fraction) {
    return samples[static_cast<std::size_t>(std::ceil(fraction * static_cast<double>(samples.size()))) - 1];
  };
  return {.min = samples.front(),
          .p10 = nearest_rank(0.10),
          .median = median,
          .p90 = nearest_rank(0.90),
          .p95 = nearest_rank(0.95),
          .p99 = nearest_rank(0.99),
          .max = samples.back()};
}

}  // namespace epistle
