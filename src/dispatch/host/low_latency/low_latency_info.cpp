#include "dispatch/host/low_latency/low_latency_info.hpp"

#include "dispatch/host/engine/host_functions.hpp"
#include "dispatch/host/low_latency/low_latency.hpp"

namespace epistle::host {
namespace {

/// At 8 tokens it is the faster one (docs/results/host-low-latency-7168.json); of more than this it was not measured.
constexpr std::int64_t kBestUpTo = 64;

std::int64_t best_up_to(const ResolvedConfig& config, int /*num_ranks*/) {
  return config.sizing == SizingMode::kCapacity ? kBestUpTo : 0;
}

}  // namespace

const DispatcherInfo& low_latency_info() {
  static const DispatcherInfo::Functions functions = [] {
    DispatcherInfo::Functions made = host_functions<LowLatencyMover, PublishedSetsRules>();
    made.best_up_to = best_up_to;
    return made;
  }();
  static const DispatcherInfo info("low_latency", Device::kHost,
                                   "every call is agreed on and sent in one step: for the few tokens of a decode step",
                                   host_capabilities(), functions);
  return info;
}

}  // namespace epistle::host
