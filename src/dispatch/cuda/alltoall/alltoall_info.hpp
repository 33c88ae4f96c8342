// What `alltoall` on CUDA says of itself: known in every build.
#pragma once

#include <memory>

#include "epistle/dispatcher_info.hpp"

#include "dispatch/call/dispatcher_functions.hpp"

namespace epistle::cuda {

[[nodiscard]] const DispatcherInfo& alltoall_info();

[[nodiscard]] const PlanRules& alltoall_rules();

/// See DispatcherInfo::Functions; without_nccl.cpp stands in where there is no NCCL.
[[nodiscard]] std::unique_ptr<DispatcherImpl> create_alltoall(const Creation& creation);

}  // namespace epistle::cuda
