// What every dispatcher on the host says of itself, but for how its rows travel.
#pragma once

#include <memory>

#include "epistle/dispatcher_info.hpp"

#include "dispatch/call/dispatcher_functions.hpp"
#include "dispatch/host/engine/host_context.hpp"
#include "dispatch/host/engine/row_mover.hpp"

namespace epistle::host {

/// All layouts, payloads, sizings and orders.
[[nodiscard]] Capabilities host_capabilities();

/// Throws kInvalidArgument.
void check_host_options(const ResolvedConfig& config, const DeviceOptions& options, const Group& group);

/// Collective.
[[nodiscard]] std::unique_ptr<DispatcherImpl> create_host_engine(const Creation& creation, Transport transport,
                                                                 std::unique_ptr<RowMover> (*make_mover)(HostContext&));

/// The functions of a dispatcher whose rows `Mover` moves.
template <typename Mover, Transport kTransport>
[[nodiscard]] const DispatcherInfo::Functions& host_functions() {
  static constexpr DispatcherInfo::Functions kFunctions = {
      .memory =
          [](const ResolvedConfig& config, int num_ranks) {
            return shared_memory_plan(DispatchLayout(to_layout_params(config, num_ranks, kTransport)));
          },
      .check = check_host_options,
      .create =
          [](const Creation& creation) {
            return create_host_engine(creation, kTransport, [](HostContext& context) -> std::unique_ptr<RowMover> {
              return std::make_unique<Mover>(context);
            });
          }};
  return kFunctions;
}

}  // namespace epistle::host
