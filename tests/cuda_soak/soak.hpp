// Many round trips of random shapes on the CUDA device, every one compared with the oracle bit for bit, and the device
// memory that is free before and after.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "epistle/group.hpp"

namespace epistle::testing {

struct SoakOptions {
  int num_ranks = 2;
  std::int64_t num_round_trips = 1000;
  bool virtual_ranks = false;  ///< all ranks on GPU 0
  bool processes = false;      ///< one process per rank, each with a GPU of its own
  std::uint64_t seed = 1;
  std::int64_t first_dispatcher = 0;  ///< where in the seed's sequence of dispatchers to start
};

struct SoakResult {
  std::int64_t num_round_trips = 0;
  std::int64_t num_dispatchers = 0;
  std::int64_t free_before_bytes = 0;  ///< of this rank's GPU, after a warm-up
  std::int64_t free_after_bytes = 0;   ///< when everything made since then is destroyed
};

using SoakProgress = std::function<void(std::int64_t num_done)>;

/// Plays one rank. Throws kVerificationFailed, with the scenario, at the first bit that differs.
[[nodiscard]] SoakResult soak_rank(Group& group, const SoakOptions& options, const SoakProgress& progress);

}  // namespace epistle::testing
