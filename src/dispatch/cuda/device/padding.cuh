// The received rows that carry no token.
#pragma once

#include <cstdint>

#include "dispatch/cuda/device/row_sums.cuh"
#include "dispatch/cuda/engine/launch.hpp"

namespace epistle::cuda {

/// Calls `visit(row)` for the padding of what a rank receives, the warps of a grid sharing it out.
template <typename Visit>
__device__ inline void for_each_padding_row(const MoveArgs& args, const WarpIndex& warp, const Visit& visit) {
  const auto visit_range = [&](std::int64_t begin, std::int64_t end, const WarpIndex& share) {
    for (std::int64_t row = begin + share.idx; row < end; row += share.count) visit(static_cast<std::int32_t>(row));
  };
  const HandleTotals& totals = *args.handle.totals;
  if (args.layout.token_major()) return visit_range(totals.content_rows, totals.num_rows, warp);
  const int num_local = args.layout.partition().num_local_experts(args.group.rank);
  const std::int32_t* begins = args.handle.expert_begin;
  for (int local = warp.idx; local < num_local; local += warp.count) {
    visit_range(begins[local] + args.handle.expert_counts[local], begins[local + 1], WarpIndex{0, 1});
  }
  visit_range(begins[num_local], totals.num_rows, warp);
}

}  // namespace epistle::cuda
