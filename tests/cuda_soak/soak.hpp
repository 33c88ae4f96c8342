// What a soak gives, and the soak of round trips: many of random shapes on the CUDA device, every one compared with the
// oracle bit for bit on the host.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "epistle/group.hpp"

#include "cuda_soak/options.hpp"

namespace epistle::testing {

struct SoakResult {
  std::int64_t num_done = 0;           ///< round trips or replays
  std::string subject;                 ///< what they were of
  std::int64_t free_before_bytes = 0;  ///< of this rank's GPU, after a warm-up
  std::int64_t free_after_bytes = 0;   ///< when everything made since then is destroyed
};

using SoakProgress = std::function<void(std::int64_t num_done)>;

/// Every rank asks while nobody holds or takes memory.
[[nodiscard]] std::int64_t free_device_bytes(Group& group, int device);

/// Plays one rank. Throws kVerificationFailed, with the scenario, at the first bit that differs.
[[nodiscard]] SoakResult soak_rank(Group& group, const SoakOptions& options, const SoakProgress& progress);

}  // namespace epistle::testing
