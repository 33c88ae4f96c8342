// Exact quotas of a batch on a GPU: the tokens of experts are read in device memory, and the parts of the replicas in
// the tables of the placement in force are set, by one block. It does what BatchShares does, to the bit.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "dispatch/cuda/device/device_types.hpp"

namespace epistle::cuda {

struct BatchQuotasArgs {
  SlotTables slots;
  const std::int64_t* expert_tokens = nullptr;  ///< [num_experts]
  std::int64_t* rank_tokens = nullptr;          ///< out, [num_ranks]; null: not wanted
  std::int64_t* slot_tokens = nullptr;          ///< out, [num_ranks, slots_per_rank]; null: not wanted
  std::int32_t num_experts = 0;
  std::int32_t num_ranks = 0;  ///< at most kMaxRanks
  std::int32_t slots_per_rank = 0;
  bool early_start = false;  ///< as DeviceGroup's

  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t num_columns() const noexcept {
    return num_ranks * slots_per_rank;
  }
};

/// Loads the kernel for experts and slots of these numbers, and raises its shared memory limit on the current device.
[[nodiscard]] cudaError_t load_batch_quotas(const BatchQuotasArgs& shape);
[[nodiscard]] cudaError_t launch_batch_quotas(const BatchQuotasArgs& args, cudaStream_t stream);

}  // namespace epistle::cuda
