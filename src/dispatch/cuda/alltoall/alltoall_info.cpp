#include "dispatch/cuda/alltoall/alltoall_info.hpp"

#include "dispatch/cuda/engine/sizes.hpp"

namespace epistle::cuda {

const DispatcherInfo& alltoall_info() {
  static constexpr DispatcherInfo::Functions kFunctions = {
      .memory =
          [](const ResolvedConfig& config, int num_ranks) {
            return device_memory_plan(config, {.num_ranks = num_ranks}, Transport::kDeviceAllToAll);
          },
      .check = check_alltoall,
      .create = create_alltoall};
  static const DispatcherInfo info(
      "alltoall", Device::kCuda, "permute, one all-to-all-v over NCCL, unpermute; a GPU for every rank",
      {.layouts = {OutputLayout::kTokenMajor, OutputLayout::kExpertMajor, OutputLayout::kExpertBlocks},
       .inputs = {DType::kBf16, DType::kFp16, DType::kFp32, DType::kFp8E4m3, DType::kRaw},
       .scales = {ScaleFormat::kFp32, ScaleFormat::kBytes},
       .outputs = {DType::kBf16, DType::kFp16, DType::kFp32},
       .orders = {SumOrder::kHierarchical, SumOrder::kFlat, SumOrder::kDeepEpV2},
       .exact_sizing = true,
       .capacity_sizing = true,
       .backward = true,
       .device_token_count = true,
       .agrees_on_host = true,
       .one_rank_per_gpu = true,
       .max_ranks = kMaxRanks,
       .needs = {"NCCL 2.18 or later (libnccl.so.2, or EPISTLE_NCCL_LIBRARY)", "a GPU for every rank"}},
      kFunctions);
  return info;
}

}  // namespace epistle::cuda
