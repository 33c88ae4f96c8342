// Of every dispatcher on a GPU: what its options and its machine have to be.
#pragma once

#include "epistle/config.hpp"
#include "epistle/group.hpp"

#include "dispatch/call/resolved_config.hpp"

namespace epistle::cuda {

/// DispatcherInfo::Functions::check. Throws where there is no GPU, or not this one, or where it has not the room.
void check_cuda_options(const ResolvedConfig& config, const DeviceOptions& options, const Group& group);

}  // namespace epistle::cuda
