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
  const auto p99_rank = static_cast<std::size_t>(std::ceil(0.99 * static_cast<double>(samples.size())));
  return {.min = samples.front(), .median = median, .p99 = samples[p99_rank - 1], .max = samples.back()};
}

}  // namespace epistle
