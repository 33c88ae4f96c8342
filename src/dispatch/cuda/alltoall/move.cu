// Dispatch around an exchange: rows into the send buffer, and out of the stage.
#include "dispatch/cuda/alltoall/exchange.hpp"
#include "dispatch/cuda/device/padding.cuh"
#include "dispatch/cuda/device/row_sums.cuh"
#include "dispatch/cuda/device/rows.cuh"

namespace epistle::nccl {
namespace {

using cuda::for_each_padding_row;
using cuda::HandleTotals;
using cuda::kFullWarp;
using cuda::kMoveThreads;
using cuda::kWarpSize;
using cuda::lane_id;
using cuda::MoveArgs;
using cuda::SendPlace;
using cuda::warp_index;
using cuda::WarpIndex;

/// Where a row is written to or read from.
enum class Place : std::int32_t { kPacked, kOutput, kStaged };

struct Copier {
  const MoveArgs& args;

  __device__ std::byte* row_at(Place place, std::int32_t row) const {
    const BufferSection section = place == Place::kPacked   ? BufferSection::kSendRows
                                  : place == Place::kStaged ? BufferSection::kStageRows
                                                            : args.target;
    return args.group.section(args.group.rank, section, buffer_of(place)) + row * args.row_bytes;
  }
  __device__ std::byte* scales_at(Place place, std::int32_t row) const {
    const BufferSection section = place == Place::kPacked   ? BufferSection::kSendScales
                                  : place == Place::kStaged ? BufferSection::kStageScales
                                                            : BufferSection::kReceiveScales;
    return args.group.section(args.group.rank, section, buffer_of(place)) + row * args.scale_bytes;
  }
  /// What is received is there several times; the stage and what is packed are not.
  __device__ std::int32_t buffer_of(Place place) const { return place == Place::kOutput ? args.buffer : 0; }
  /// One row, with its scales, to the places of the lanes in `mask`, each lane's own. `kSpaced`: the scales lie as
  /// args.strides says, otherwise dense.
  template <bool kSpaced>
  __device__ void copy(unsigned mask, Place place, std::int32_t at, const std::byte* row,
                       const std::byte* scales) const {
    if (mask == 0) return;
    const bool mine = (mask >> lane_id() & 1U) != 0;
    cuda::copy_row_to(mask, mine ? row_at(place, at) : nullptr, row, args.row_bytes);
    if (args.scale_bytes == 0) return;
    std::byte* target = mine ? scales_at(place, at) : nullptr;
    if (kSpaced && !args.strides.has_dense_scales()) {
      cuda::gather_row_to(mask, target,
                          {scales, args.strides.scale_column, args.strides.scale_element_bytes, args.scale_bytes});
    } else {
      cuda::copy_row_to(mask, target, scales, args.scale_bytes);
    }
  }
  __device__ void copy_token(unsigned mask, Place place, std::int32_t at, std::int64_t token) const {
    copy<true>(mask, place, at, args.rows + token * args.strides.row,
               args.scale_bytes > 0 ? args.scales + token * args.strides.scale_row : nullptr);
  }

  __device__ void pack_token(std::int64_t token) const {
    const int num_sends = args.handle.sends_per_token;
    const bool token_major = args.layout.token_major();
    for (int first = 0; first < num_sends; first += kWarpSize) {
      SendPlace send{-1, -1, -1, -1};
      if (first + lane_id() < num_sends) send = args.handle.sends[token * num_sends + first + lane_id()];
      const bool own = send.dst_rank == args.group.rank;
      const bool taken = send.dst_rank >= 0 && (!own || token_major);
      copy_token(__ballot_sync(kFullWarp, taken), own ? Place::kOutput : Place::kPacked, own ? send.row : send.stage,
                 token);
    }
    if (token_major) return;
    const int top_k = args.handle.top_k;
    const ExpertPartition partition = args.layout.partition();
    for (int first = 0; first < top_k; first += kWarpSize) {
      const int i = first + lane_id();
      std::int32_t row = i < top_k ? args.handle.dst_row[token * top_k + i] : -1;
      if (row >= 0 && partition.rank_of(args.handle.expert_ids[token * top_k + i]) != args.group.rank) row = -1;
      copy_token(__ballot_sync(kFullWarp, row >= 0), Place::kOutput, row, token);
    }
  }

  __device__ void expand_pair(std::int32_t pair) const {
    const int top_k = args.handle.top_k;
    const auto* record = reinterpret_cast<const std::int32_t*>(args.handle.pair_records +
                                                               std::int64_t{pair} * args.layout.pair_record_bytes());
    for (int first = 0; first < top_k; first += kWarpSize) {
      const int i = first + lane_id();
      const std::int32_t row = i < top_k ? record[2 + i] : -1;
      copy<false>(__ballot_sync(kFullWarp, row >= 0), Place::kOutput, row, row_at(Place::kStaged, pair),
                  args.scale_bytes > 0 ? scales_at(Place::kStaged, pair) : nullptr);
    }
  }

  __device__ void zero_padding(const WarpIndex& warp) const {
    for_each_padding_row(args, warp, [this](std::int32_t row) {
      cuda::zero_row(row_at(Place::kOutput, row), args.row_bytes);
      if (args.scale_bytes > 0) cuda::zero_row(scales_at(Place::kOutput, row), args.scale_bytes);
    });
  }
};

__global__ void __launch_bounds__(kMoveThreads, 1) pack_tokens_kernel(const __grid_constant__ MoveArgs args) {
  const Copier copier{args};
  const WarpIndex warp = warp_index();
  for (std::int64_t token = warp.idx; token < args.handle.num_tokens; token += warp.count) copier.pack_token(token);
}

__global__ void __launch_bounds__(kMoveThreads, 1) expand_pairs_kernel(const __grid_constant__ MoveArgs args) {
  const Copier copier{args};
  const WarpIndex warp = warp_index();
  if (args.zero_padding) copier.zero_padding(warp);
  if (args.layout.token_major()) return;
  // The own pairs went to their rows when the others were packed.
  const HandleTotals& totals = *args.handle.totals;
  const std::int32_t own_begin = totals.pair_begin[args.group.rank];
  const std::int32_t own_end = totals.pair_begin[args.group.rank + 1];
  for (std::int32_t pair = warp.idx; pair < totals.num_pairs; pair += warp.count) {
    if (pair < own_begin || pair >= own_end) copier.expand_pair(pair);
  }
}

}  // namespace

cudaError_t launch_pack_tokens(const MoveArgs& args, cudaStream_t stream) {
  pack_tokens_kernel<<<args.tuning.num_blocks, kMoveThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t launch_expand_pairs(const MoveArgs& args, cudaStream_t stream) {
  expand_pairs_kernel<<<args.tuning.num_blocks, kMoveThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t load_exchange_kernels() {
  cudaFuncAttributes attributes;
  for (const void* kernel :
       {reinterpret_cast<const void*>(&pack_tokens_kernel), reinterpret_cast<const void*>(&expand_pairs_kernel)}) {
    const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
    if (error != cudaSuccess) return error;
  }
  const cudaError_t error = load_sum_kernels();
  return error != cudaSuccess ? error : load_entry_kernels();
}

}  // namespace epistle::nccl
