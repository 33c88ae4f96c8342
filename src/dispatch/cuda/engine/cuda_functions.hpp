// How every dispatcher on a GPU is made, but for how its rows travel and through which buffers.
#pragma once

#include <memory>

#include "dispatch/call/dispatcher_functions.hpp"
#include "dispatch/cuda/engine/transport.hpp"

namespace epistle::cuda {

/// Collective. The rules outlive what is made.
[[nodiscard]] std::unique_ptr<DispatcherImpl> create_cuda_engine(const Creation& creation, const PlanRules& rules,
                                                                 MakeTransport make_transport);

template <typename Transport>
[[nodiscard]] std::unique_ptr<RowTransport> make_transport(EngineContext& context) {
  return std::make_unique<Transport>(context);
}

}  // namespace epistle::cuda
