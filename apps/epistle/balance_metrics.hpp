// What `epistle balance` found, for Prometheus.
#pragma once

#include <string>

#include "balance/metrics_server.hpp"
#include "balance_report.hpp"

namespace epistle::cli {

/// Figures of the last policy of the report.
[[nodiscard]] std::string balance_metrics(const BalanceReport& report);

/// Serves them until SIGINT or SIGTERM comes.
void serve_metrics(const BalanceReport& report, const balance::MetricsAddress& address);

}  // namespace epistle::cli
