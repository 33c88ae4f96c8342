// What `low_latency` on CUDA says of itself: known in every build.
#pragma once

#include <memory>

#include "epistle/dispatcher_info.hpp"

#include "dispatch/call/dispatcher_functions.hpp"

namespace epistle::cuda {

[[nodiscard]] const DispatcherInfo& low_latency_info();

[[nodiscard]] const PlanRules& low_latency_rules();

/// See DispatcherInfo::Functions; without_cuda.cpp stands in where there is no CUDA.
void check_low_latency(const ResolvedConfig& config, const DeviceOptions& options, const Group& group);
[[nodiscard]] std::unique_ptr<DispatcherImpl> create_low_latency(const Creation& creation);

}  // namespace epistle::cuda
