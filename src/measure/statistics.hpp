// Order statistics of repeated measurements.
#pragma once

#include <vector>

namespace epistle {

inline constexpr double kMicrosPerSecond = 1e6;

struct Summary {
  double min = 0.0;
  double p10 = 0.0;  ///< percentiles are those of the nearest rank
  double median = 0.0;
  double p90 = 0.0;
  double p95 = 0.0;
  double p99 = 0.0;  ///< with fewer than 100 samples the largest one
  double max = 0.0;
};

/// All zero without samples.
[[nodiscard]] Summary summarize(std::vector<double> samples);

}  // namespace epistle
