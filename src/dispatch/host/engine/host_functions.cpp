#include "dispatch/host/engine/host_functions.hpp"

#include <fmt/format.h>

#include "dispatch/host/engine/host_engine.hpp"
#include "dispatch/host/engine/row_kernels.hpp"

namespace epistle::host {

Capabilities host_capabilities() {
  Capabilities can = common_capabilities();
  can.agrees_on_host = true;
  can.quantises = true;
  can.masks = true;
  can.orders.push_back(SumOrder::kDomains);
  can.scale_orders = {ScaleOrder::kRows, ScaleOrder::kColumns};
  return can;
}

void check_host_options(const ResolvedConfig& /*config*/, const DeviceOptions& options, const Group& /*group*/) {
  constexpr std::int32_t kMaxWorkers = 1024;
  const auto& [num_workers, stream_bytes] = std::get<HostOptions>(options);
  if (num_workers < 1 || num_workers > kMaxWorkers) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("num_workers is {}; it must be between 1 and {}", num_workers, kMaxWorkers));
  }
  if (stream_bytes < -1) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("stream_bytes is {}; it must be -1 (automatic) or a number of bytes", stream_bytes));
  }
  configure_simd();
}

std::unique_ptr<DispatcherImpl> create_host_engine(const Creation& creation, const PlanRules& rules,
                                                   std::unique_ptr<RowMover> (*make_mover)(HostContext&)) {
  return std::make_unique<HostEngine>(creation.group, creation.identity, creation.config, rules,
                                      std::get<HostOptions>(creation.options), make_mover);
}

}  // namespace epistle::host
