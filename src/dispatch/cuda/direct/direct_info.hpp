// What `direct` on CUDA says of itself: known in every build.
#pragma once

#include <memory>

#include "epistle/dispatcher_info.hpp"

#include "dispatch/call/dispatcher_functions.hpp"

namespace epistle::cuda {

[[nodiscard]] const DispatcherInfo& direct_info();

[[nodiscard]] const PlanRules& direct_rules();

/// See DispatcherInfo::Functions; without_cuda.cpp stands in where there is no CUDA.
void check_direct(const ResolvedConfig& config, const DeviceOptions& options, const Group& group);
[[nodiscard]] std::unique_ptr<DispatcherImpl> create_direct(const Creation& creation);

}  // namespace epistle::cuda
