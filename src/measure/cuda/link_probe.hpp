// The peer-store limit of a run: what one rank can store into the next one's GPU while all ranks do so.
#pragma once

#include <vector>

#include <cuda_runtime_api.h>

#include "epistle/group.hpp"

#include "gpu/device_uuid.hpp"
#include "measure/bench_types.hpp"

namespace epistle {

/// Which GPU a rank has, as ranks tell each other.
struct RankDevice {
  int ordinal = 0;  ///< in the rank's own process
  int num_sms = 0;
  cuda::DeviceUuid uuid{};
};

/// Collective. The current device is this rank's GPU.
[[nodiscard]] std::vector<RankDevice> gather_devices(Group& group);

/// Distinct GPUs among `devices`.
[[nodiscard]] int count_gpus(const std::vector<RankDevice>& devices);

/// Collective; no stream of any rank may have work. Where every rank has a GPU of its own, rank r stores to rank
/// (r + 1) mod n; where ranks share one, or there is only one, every rank stores into its own memory.
[[nodiscard]] LinkLimit measure_link_limit(Group& group, cudaStream_t stream, const std::vector<RankDevice>& devices);

}  // namespace epistle
