// Rows on their way from tokens to experts across domains.
#include "dispatch/cuda/device/padding.cuh"
#include "dispatch/cuda/device/row_sums.cuh"
#include "dispatch/cuda/device/rows.cuh"
#include "dispatch/cuda/hybrid/hybrid_launch.hpp"

namespace epistle::cuda {
namespace {

/// A row and its scales, as a caller has them or as they travel.
struct SourceRow {
  const std::byte* row;
  const std::byte* scales;
};

template <class Args>
__device__ SourceRow source_row(const Args& args, std::int64_t idx) {
  return {args.rows + idx * args.strides.row,
          args.scale_bytes > 0 ? args.scales + idx * args.strides.scale_row : nullptr};
}

/// Scales arrive dense, however they lie.
template <class Args>
__device__ void copy_scales(const Args& args, unsigned mask, std::byte* target, const std::byte* scales) {
  if (args.strides.has_dense_scales()) {
    copy_row_to(mask, target, scales, args.scale_bytes);
  } else {
    gather_row_to(mask, target,
                  {scales, args.strides.scale_column, args.strides.scale_element_bytes, args.scale_bytes});
  }
}

__global__ void __launch_bounds__(kMoveThreads, 1) pack_rows_kernel(const __grid_constant__ PackRowsArgs args) {
  const WarpIndex warp = warp_index();
  for (std::int64_t idx = warp.idx; idx < args.count; idx += warp.count) {
    const SourceRow from = source_row(args, args.tokens[idx]);
    copy_row_to(1U, args.out_rows + idx * args.row_bytes, from.row, args.row_bytes);
    if (args.scale_bytes > 0) copy_scales(args, 1U, args.out_scales + idx * args.scale_bytes, from.scales);
  }
}

__global__ void __launch_bounds__(kMoveThreads, 1) forward_rows_kernel(const __grid_constant__ ForwardRowsArgs args) {
  const WarpIndex warp = warp_index();
  for (std::int64_t idx = warp.idx; idx < args.count; idx += warp.count) {
    const SourceRow from = source_row(args, args.tokens != nullptr ? args.tokens[idx] : idx);
    for (int first = 0; first < args.top_k; first += kWarpSize) {
      RouteTerm term;
      if (first + lane_id() < args.top_k) term = args.terms[idx * args.top_k + first + lane_id()];
      const bool mine = term.rank >= 0 && (term.flags & RouteTerm::kFirst) != 0;
      const unsigned mask = __ballot_sync(kFullWarp, mine);
      if (mask == 0) continue;
      copy_row_to(mask, mine ? args.to.rows_of(term.rank) + term.row * args.row_bytes : nullptr, from.row,
                  args.row_bytes);
      if (args.scale_bytes == 0) continue;
      copy_scales(args, mask, mine ? args.to.scales_of(term.rank) + term.row * args.scale_bytes : nullptr, from.scales);
    }
  }
}

/// A received row for the token's other experts here: it was written to the first of its rows.
__device__ void duplicate_pair(const MoveArgs& args, std::int32_t pair, std::byte* rows, std::byte* scales) {
  const int top_k = args.handle.top_k;
  const auto* record = reinterpret_cast<const std::int32_t*>(args.handle.pair_records +
                                                             std::int64_t{pair} * args.layout.pair_record_bytes());
  std::int32_t primary = -1;
  for (int first = 0; first < top_k; first += kWarpSize) {
    const int i = first + lane_id();
    const std::int32_t row = i < top_k ? record[2 + i] : -1;
    unsigned mask = __ballot_sync(kFullWarp, row >= 0);
    if (mask == 0) continue;
    if (primary < 0) {
      primary = __shfl_sync(kFullWarp, row, __ffs(static_cast<int>(mask)) - 1);
      mask &= mask - 1;
    }
    if (mask == 0) continue;
    const bool mine = (mask >> lane_id() & 1U) != 0;
    copy_row_to(mask, mine ? rows + row * args.row_bytes : nullptr, rows + primary * args.row_bytes, args.row_bytes);
    if (args.scale_bytes == 0) continue;
    copy_row_to(mask, mine ? scales + row * args.scale_bytes : nullptr, scales + primary * args.scale_bytes,
                args.scale_bytes);
  }
}

__global__ void __launch_bounds__(kMoveThreads, 1) complete_rows_kernel(const __grid_constant__ MoveArgs args) {
  const WarpIndex warp = warp_index();
  std::byte* const rows = args.group.section(args.group.rank, args.target, args.buffer);
  std::byte* const scales = args.group.section(args.group.rank, BufferSection::kReceiveScales, args.buffer);
  if (args.zero_padding) {
    for_each_padding_row(args, warp, [&](std::int32_t row) {
      zero_row(rows + row * args.row_bytes, args.row_bytes);
      if (args.scale_bytes > 0) zero_row(scales + row * args.scale_bytes, args.scale_bytes);
    });
  }
  if (args.layout.token_major()) return;
  const std::int32_t num_pairs = args.handle.totals->num_pairs;
  for (std::int32_t pair = warp.idx; pair < num_pairs; pair += warp.count) duplicate_pair(args, pair, rows, scales);
}

}  // namespace

cudaError_t launch_pack_rows(const PackRowsArgs& args, cudaStream_t stream) {
  pack_rows_kernel<<<args.num_blocks, kMoveThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t launch_forward_rows(const ForwardRowsArgs& args, cudaStream_t stream) {
  forward_rows_kernel<<<args.num_blocks, kMoveThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t launch_complete_rows(const MoveArgs& args, cudaStream_t stream) {
  complete_rows_kernel<<<args.tuning.num_blocks, kMoveThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t load_hybrid_kernels() {
  cudaFuncAttributes attributes;
  for (const void* kernel :
       {reinterpret_cast<const void*>(&pack_rows_kernel), reinterpret_cast<const void*>(&forward_rows_kernel),
        reinterpret_cast<const void*>(&complete_rows_kernel)}) {
    if (const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel); error != cudaSuccess) return error;
  }
  return load_hybrid_sums();
}

}  // namespace epistle::cuda
