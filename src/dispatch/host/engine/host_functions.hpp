// What every dispatcher on the host says of itself, but for how its rows travel and through which buffers.
#pragma once

#include <memory>

#include "epistle/dispatcher_info.hpp"

#include "dispatch/call/dispatcher_functions.hpp"
#include "dispatch/host/engine/host_context.hpp"
#include "dispatch/host/engine/row_mover.hpp"
#include "dispatch/host/engine/sizes.hpp"

namespace epistle::host {

/// All layouts, payloads, sizings and orders.
[[nodiscard]] Capabilities host_capabilities();

/// Throws kInvalidArgument.
void check_host_options(const ResolvedConfig& config, const DeviceOptions& options, const Group& group);

/// Collective.
[[nodiscard]] std::unique_ptr<DispatcherImpl> create_host_engine(const Creation& creation, const PlanRules& rules,
                                                                 std::unique_ptr<RowMover> (*make_mover)(HostContext&));

template <typename Mover>
[[nodiscard]] std::unique_ptr<RowMover> make_mover(HostContext& context) {
  return std::make_unique<Mover>(context);
}

/// The functions of a dispatcher whose rows `Mover` moves, with the buffers of `Rules`. `Make`: where another mover may
/// take its place.
template <typename Mover, typename Rules, auto Make = &make_mover<Mover>>
[[nodiscard]] const DispatcherInfo::Functions& host_functions() {
  static const Rules rules;
  static constexpr DispatcherInfo::Functions kFunctions = {
      .plan = [](const ResolvedConfig& config, int num_ranks) { return plan_buffers(config, num_ranks, rules); },
      .check = check_host_options,
      .create = [](const Creation& creation) { return create_host_engine(creation, rules, Make); }};
  return kFunctions;
}

}  // namespace epistle::host
