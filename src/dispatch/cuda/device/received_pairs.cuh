// The pairs that a rank has received. Those from the others are served source by source in turn, so that every source's
// tokens complete at the same pace.
#pragma once

#include <cstdint>

#include "dispatch/cuda/device/device_types.hpp"
#include "layout/dispatch_layout.hpp"

namespace epistle::cuda {

/// What is known of a received pair of an expert layout (DispatchLayout::pair_record_bytes()): by top-k position the
/// row here, -1 = none; behind the rows the weights.
__device__ inline const std::int32_t* rows_of_pair(const HandleArrays& handle, const DispatchLayout& layout,
                                                   std::int64_t pair) {
  constexpr int kHeaderWords = sizeof(TokenRecordHeader) / sizeof(std::int32_t);
  return reinterpret_cast<const std::int32_t*>(handle.pair_records + pair * layout.pair_record_bytes()) + kHeaderWords;
}

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
