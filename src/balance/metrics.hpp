// What the balancer knows, as Prometheus scrapes it: text for a file that node_exporter's textfile collector reads, or
// for an endpoint.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "balance/load_window.hpp"

namespace epistle::balance {

struct LayerMetrics {
  double balancedness = 1.0;               ///< mean / max per rank under the quotas in force
  std::vector<std::int32_t> num_replicas;  ///< [num_experts]; empty = not told
  std::int64_t num_moves = 0;              ///< weights copied since the beginning
};

/// `layers` has one entry for every layer of `loads`, or none. Throws kShapeMismatch otherwise.
[[nodiscard]] std::string metrics_text(const LoadSnapshot& loads, const std::vector<LayerMetrics>& layers);

/// Replaces the file at once, so that nobody reads half of it. Throws kSystem.
void write_metrics(const std::string& path, const std::string& text);

}  // namespace epistle::balance
