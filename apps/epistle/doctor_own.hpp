// What Epistle's own dispatchers prove of themselves, and what they would take.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "epistle/config.hpp"

#include "doctor_types.hpp"
#include "topology/nvml.hpp"

namespace epistle::cli {

/// Every dispatcher of both devices, run for real where there is a device: two ranks, a few iterations, every output
/// bit compared with the reference. In a process of its own, so that a crash or a hang is a finding.
[[nodiscard]] std::vector<BackendProof> probe_own(const NvmlProbe& gpus, std::chrono::milliseconds limit);

/// The same dispatchers without a run: which of them this build has, and `reason` for why the others were not tried.
[[nodiscard]] std::vector<BackendProof> list_own(std::string_view reason);

struct MemoryQuestion {
  DispatcherConfig config;
  std::int32_t num_ranks = 0;
};

/// What each dispatcher would take of a rank's memory. Nothing is allocated.
[[nodiscard]] std::vector<MemoryNeed> plan_memory(const MemoryQuestion& question, const NvmlProbe& gpus);

}  // namespace epistle::cli
