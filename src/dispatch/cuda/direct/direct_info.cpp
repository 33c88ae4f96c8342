#include "dispatch/cuda/direct/direct_info.hpp"

#include "dispatch/cuda/engine/sizes.hpp"

namespace epistle::cuda {

const DispatcherInfo& direct_info() {
  static constexpr DispatcherInfo::Functions kFunctions = {
      .memory = [](const ResolvedConfig& config,
                   int num_ranks) { return device_memory_plan(config, {.num_ranks = num_ranks}, Transport::kDevice); },
      .check = check_direct,
      .create = create_direct};
  static const DispatcherInfo info(
      "direct", Device::kCuda, "each row written once per (token, rank) straight to its final place",
      {.layouts = {OutputLayout::kTokenMajor, OutputLayout::kExpertMajor, OutputLayout::kExpertBlocks},
       .inputs = {DType::kBf16, DType::kFp16, DType::kFp32, DType::kFp8E4m3, DType::kRaw},
       .scales = {ScaleFormat::kFp32, ScaleFormat::kBytes},
       .outputs = {DType::kBf16, DType::kFp16, DType::kFp32},
       .orders = {SumOrder::kHierarchical, SumOrder::kFlat, SumOrder::kDeepEpV2},
       .exact_sizing = true,
       .capacity_sizing = true,
       .backward = true,
       .graph_capture = true,
       .device_token_count = true,
       .max_ranks = kMaxRanks,
       .needs = {"a GPU of sm_80 or later",
                 "GPUs that reach each other's memory (NVLink, PCIe peer access, or one GPU)"}},
      kFunctions);
  return info;
}

}  // namespace epistle::cuda
