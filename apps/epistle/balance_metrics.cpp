#include "balance_metrics.hpp"

#include <csignal>
#include <cstdio>
#include <vector>

#include <fmt/format.h>

#include "balance/metrics.hpp"
#include "core/reject.hpp"

namespace epistle::cli {

std::string balance_metrics(const BalanceReport& report) {
  balance::LoadSnapshot snapshot;
  snapshot.num_layers = static_cast<std::int32_t>(report.loads.size());
  snapshot.num_experts = static_cast<std::int32_t>(report.loads.front().size());
  for (const std::vector<std::int64_t>& layer : report.loads) {
    if (layer.size() != report.loads.front().size()) {
      reject("--serve: the layers have different numbers of experts; choose one with --layer");
    }
    snapshot.tokens_total.insert(snapshot.tokens_total.end(), layer.begin(), layer.end());
  }
  std::vector<balance::LayerMetrics> layers;
  // Results go by policy: the last ones are those of the last policy.
  for (std::size_t idx = report.results.size() - report.loads.size(); idx < report.results.size(); ++idx) {
    const balance::ReplayResult& result = report.results[idx];
    layers.push_back({.balancedness = result.balancedness,
                      .num_replicas = result.placement.replica_counts(snapshot.num_experts),
                      .num_moves = result.num_copies});
  }
  return balance::metrics_text(snapshot, layers);
}

void serve_metrics(const BalanceReport& report, const balance::MetricsAddress& address) {
  std::string text = balance_metrics(report);
  // Blocked before the server's thread begins, which inherits that: the signals come to sigwait.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  sigset_t before;
  pthread_sigmask(SIG_BLOCK, &signals, &before);
  {
    const balance::MetricsServer server(address, [&text] { return text; });
    fmt::print(stderr, "epistle: serving metrics at http://{}:{}/metrics; interrupt to end\n", address.host,
               server.port());
    int signal = 0;
    sigwait(&signals, &signal);
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

}  // namespace epistle::cli
