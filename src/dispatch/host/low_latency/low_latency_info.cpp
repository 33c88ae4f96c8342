#include "dispatch/host/low_latency/low_latency_info.hpp"

#include "dispatch/host/engine/host_functions.hpp"
#include "dispatch/host/low_latency/low_latency.hpp"

namespace epistle::host {

namespace {

/// Measured between two processes on two cores, hidden 7168, top-8 of 256.
constexpr std::int64_t kBestUpTo = 64;

std::int64_t best_up_to(const ResolvedConfig& config, int /*num_ranks*/) {
  return config.sizing == SizingMode::kCapacity ? kBestUpTo : 0;
}

}  // namespace

const DispatcherInfo& low_latency_info() {
  static const DispatcherInfo info(
      "low_latency", Device::kHost, "every call is agreed on and sent in one step: for the few tokens of a decode step",
      host::host_capabilities(), host::host_functions<LowLatencyMover, PublishedSetsRules, best_up_to>());
  return info;
}

}  // namespace epistle::host
