// What `hybrid` on CUDA says of itself: known in every build.
#pragma once

#include <memory>

#include "epistle/dispatcher_info.hpp"

#include "dispatch/call/dispatcher_functions.hpp"

namespace epistle::cuda {

[[nodiscard]] const DispatcherInfo& hybrid_info();

/// Of the memory of GPUs.
[[nodiscard]] const PlanRules& hybrid_rules();
/// Of the host memory in which links land.
[[nodiscard]] BufferPlan plan_links(const ResolvedConfig& config, int num_ranks);

/// See DispatcherInfo::Functions; without_cuda.cpp stands in where there is no CUDA.
[[nodiscard]] std::unique_ptr<DispatcherImpl> create_hybrid(const Creation& creation);

}  // namespace epistle::cuda
