// Raising the flags of received rows, in a dispatch that was asked for it.
#pragma once

#include <cstdint>

#include "dispatch/cuda/low_latency/line_launch.hpp"
#include "dispatch/cuda/low_latency/line_tables.cuh"

namespace epistle::cuda {

/// Rows of a source for an expert here.
__device__ inline device::RowArrival rows_of_source(const ExtraDispatchArgs& args, const LineTables& t,
                                                    std::uint32_t epoch, int source, int local) {
  const std::int32_t begin = t.begin[source * t.num_local + local];
  const int expert = t.all.first[args.routing.group.rank] + local;
  const std::int32_t end = source + 1 < args.routing.group.num_ranks ? t.begin[(source + 1) * t.num_local + local]
                                                                     : t.all.group[expert] + t.all.total[expert];
  return {epoch, begin, end - begin, 0};
}

/// Behind a fence, where rows have been written.
__device__ inline void raise_flag(device::RowArrival* flag, const device::RowArrival& rows) {
  flag->begin = rows.begin;
  flag->count = rows.count;
  // Pairs with the acquire of try_rows().
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(&flag->number), "r"(rows.number) : "memory");
}

/// One more part of a row of `source` for the expert has been written, by the warp of this thread, which has met since;
/// the last one of all raises the flag.
__device__ inline void count_row_part(const ExtraDispatchArgs& args, const LineTables& t, std::uint32_t epoch,
                                      int source, int local) {
  const int idx = source * t.num_local + local;
  const device::RowArrival rows = rows_of_source(args, t, epoch, source, local);
  // Header and chunks; what is kept of own tokens is not the reader's business.
  const auto parts = static_cast<std::uint32_t>(rows.count * (args.lines.dispatch_parts - 1));
  fence_device();  // pairs with the fence of the last one
  if (atomicAdd(args.flags.parts + idx, 1U) + 1 != parts) return;
  args.flags.parts[idx] = 0;
  fence_device();
  raise_flag(args.flags.arrivals + idx, rows);
}

/// Flags of sources that have no rows for an expert; by the blocks that move rows.
__device__ inline void raise_empty(const ExtraDispatchArgs& args, const LineTables& t, std::uint32_t epoch,
                                   int num_movers) {
  const int count = args.routing.group.num_ranks * t.num_local;
  const int first = static_cast<int>(blockIdx.x) * kLineThreads + static_cast<int>(threadIdx.x);
#pragma unroll 1
  for (int idx = first; idx < count; idx += num_movers * kLineThreads) {
    const int source = idx / t.num_local;
    const device::RowArrival rows = rows_of_source(args, t, epoch, source, idx - source * t.num_local);
    if (rows.count == 0) raise_flag(args.flags.arrivals + idx, rows);
  }
}

}  // namespace epistle::cuda
