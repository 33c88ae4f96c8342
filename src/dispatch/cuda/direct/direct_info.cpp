#include "dispatch/cuda/direct/direct_info.hpp"

#include "dispatch/cuda/engine/sizes.hpp"

namespace epistle::cuda {

namespace {

Capabilities direct_capabilities() {
  Capabilities can = common_capabilities();
  can.graph_capture = true;
  can.max_ranks = kMaxRanks;
  can.needs = {"a GPU of sm_80 or later", "GPUs that reach each other's memory (NVLink, PCIe peer access, or one GPU)"};
  return can;
}

}  // namespace

const DispatcherInfo& direct_info() {
  static constexpr DispatcherInfo::Functions kFunctions = {
      .memory = [](const ResolvedConfig& config,
                   int num_ranks) { return device_memory_plan(config, {.num_ranks = num_ranks}, Transport::kDevice); },
      .check = check_direct,
      .create = create_direct};
  static const DispatcherInfo info("direct", Device::kCuda,
                                   "each row written once per (token, rank) straight to its final place",
                                   direct_capabilities(), kFunctions);
  return info;
}

}  // namespace epistle::cuda
