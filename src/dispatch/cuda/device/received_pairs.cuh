// The pairs that a rank has received from the others. They are served source by source in turn, so that every source's
// tokens complete at the same pace.
#pragma once

#include <cstdint>

#include "dispatch/cuda/device/device_types.hpp"

namespace epistle::cuda {

/// Most pairs that one of the other ranks has sent: the number of turns. `totals`: HandleTotals, or what has
/// been taken from them.
template <class Totals>
__device__ inline int longest_source(const DeviceGroup& group, const Totals& totals) {
  int longest = 0;
  for (int s = 0; s < group.num_ranks; ++s) {
    if (s != group.rank) longest = max(longest, totals.pair_begin[s + 1] - totals.pair_begin[s]);
  }
  return longest;
}

}  // namespace epistle::cuda
