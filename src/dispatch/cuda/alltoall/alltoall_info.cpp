#include "dispatch/cuda/alltoall/alltoall_info.hpp"

#include "dispatch/cuda/engine/sizes.hpp"

namespace epistle::cuda {

namespace {

Capabilities alltoall_capabilities() {
  Capabilities can = common_capabilities();
  can.agrees_on_host = true;
  can.one_rank_per_gpu = true;
  can.max_ranks = kMaxRanks;
  can.needs = {"NCCL 2.18 or later (libnccl.so.2, or EPISTLE_NCCL_LIBRARY)", "a GPU for every rank"};
  return can;
}

}  // namespace

const DispatcherInfo& alltoall_info() {
  static constexpr DispatcherInfo::Functions kFunctions = {
      .memory =
          [](const ResolvedConfig& config, int num_ranks) {
            return device_memory_plan(config, {.num_ranks = num_ranks}, Transport::kDeviceAllToAll);
          },
      .check = check_alltoall,
      .create = create_alltoall};
  static const DispatcherInfo info("alltoall", Device::kCuda,
                                   "permute, one all-to-all-v over NCCL, unpermute; a GPU for every rank",
                                   alltoall_capabilities(), kFunctions);
  return info;
}

}  // namespace epistle::cuda
