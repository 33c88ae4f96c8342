// Combine by lines where sums go by experts (flat sums of expert rows): the ranks of the experts send one row per
// (token, expert) to fixed places at the token's rank, whatever the others do; that rank adds as the lines arrive, in
// top-k order.
#include "dispatch/cuda/device/start_kernel.cuh"
#include "dispatch/cuda/low_latency/kernels.hpp"
#include "dispatch/cuda/low_latency/line_sums.cuh"

namespace epistle::cuda {
namespace {

template <class Format, bool kAligned>
struct ExpertSummer : LineSums<kAligned> {
  using Sums = LineSums<kAligned>;
  using Sums::args;
  using Sums::group;
  using Sums::lines;
  using Sums::sources;

  /// What this rank has for the tokens of others; one warp among others.
  __device__ void send(const Worker& worker) const {
    const int count = this->num_send_units();
#pragma unroll 1
    for (int unit = worker.idx; unit < count; unit += worker.count) {
      SendUnit found;
      if (this->find_send_unit(unit, found)) send_rows(found);
    }
  }

  /// The tokens of this rank; likewise.
  __device__ void receive(const Worker& worker) const {
    const int chunks = lines.combine_chunks;
    const int count = static_cast<int>(args.handle.num_tokens) * chunks;
#pragma unroll 1
    for (int unit = worker.idx; unit < count; unit += worker.count) {
      const auto token = lines.by_combine_chunks.quotient(unit);
      const int chunk = unit - token * chunks;
      ChunkSums<Format> sums;
      if (!sum_experts(token, chunk, sums)) return;
      Chunk out;
      sums.pack(out);
      this->store_sum(token, chunk, out);
    }
  }

 private:
  __device__ void send_rows(const SendUnit& unit) const {
    const int top_k = args.handle.top_k;
    const std::int32_t* record = this->record_of(unit.pair);
    const std::int32_t row = lane_id() < top_k ? record[2 + lane_id()] : -1;
    const std::int64_t first_slot = std::int64_t{record[1]} * top_k;
#pragma unroll 1
    for (unsigned left = __ballot_sync(kFullWarp, row >= 0); left != 0; left &= left - 1) {
      const int position = __ffs(static_cast<int>(left)) - 1;
      Chunk data;
      this->load_own(__shfl_sync(kFullWarp, row, position), unit.chunk, data);
      this->send_chunk(unit.source, first_slot + position, unit.chunk, data);
    }
  }

  /// One row per expert, in top-k order; false when a wait was given up.
  __device__ bool sum_experts(int token, int chunk, ChunkSums<Format>& sums) const {
    const HandleArrays& handle = args.handle;
    const ExpertPartition partition = args.layout.partition();
    const std::int64_t first_entry = std::int64_t{token} * handle.top_k;
    std::int32_t row = -1;
    float weight = 0.0F;
    int rank = -1;
    if (lane_id() < handle.top_k && sources.is_void == 0) {
      row = handle.dst_row[first_entry + lane_id()];
      weight = handle.weights[first_entry + lane_id()];
      const std::int32_t expert = handle.expert_ids[first_entry + lane_id()];
      if (expert >= 0) rank = partition.rank_of(expert);
    }
    sums.clear();
#pragma unroll 1
    for (unsigned left = __ballot_sync(kFullWarp, row >= 0 && rank >= 0); left != 0; left &= left - 1) {
      const int position = __ffs(static_cast<int>(left)) - 1;
      const int from = __shfl_sync(kFullWarp, rank, position);
      Chunk data;
      if (from == group().rank) {
        this->load_own(__shfl_sync(kFullWarp, row, position), chunk, data);
      } else {
        if (!this->await_chunk(from, first_entry + position, chunk, data)) return false;
        data.clear_behind(this->parts, this->bytes_of(chunk));
      }
      sums.add(data, args.weighted ? __shfl_sync(kFullWarp, weight, position) : 1.0F);
    }
    return true;
  }
};

template <class Format, bool kAligned>
__global__ void __launch_bounds__(kLineThreads, 1)
    combine_experts_kernel(const __grid_constant__ LineCombineArgs args) {
  __shared__ SourceRows sources;
  CallContext call;
  const ExpertSummer<Format, kAligned> summer{{args.sum, args.lines, call, sources}};
  Worker sending;
  Worker receiving;
  bool sends = false;
  bool receives = false;
  const auto ask = [&](bool has_sends, bool has_receives) {
    const auto warp = static_cast<int>(threadIdx.x) / kWarpSize;
    sending = line_worker(static_cast<int>(gridDim.x), warp, kLineWarps);
    // Warps that have nothing to send begin to receive.
    receiving = line_worker(static_cast<int>(gridDim.x), kLineWarps - 1 - warp, kLineWarps);
    sends = has_sends;
    receives = has_receives;
  };
  const auto move = [&] {
    if (sends) summer.send(sending);
    if (receives) summer.receive(receiving);
  };
  run_line_sum(args, call, sources, ask, move);
}

using ExpertKernel = void (*)(LineCombineArgs);

ExpertKernel combine_experts(DType dtype, bool aligned) {
  return with_format(dtype, [&](auto format) -> ExpertKernel {
    using Format = decltype(format);
    return aligned ? combine_experts_kernel<Format, true> : combine_experts_kernel<Format, false>;
  });
}

}  // namespace

const void* combine_experts_address(DType dtype, bool aligned) noexcept {
  return reinterpret_cast<const void*>(combine_experts(dtype, aligned));
}

cudaError_t launch_combine_experts(const LineCombineArgs& args, bool aligned, cudaStream_t stream) {
  return start_kernel(combine_experts(args.sum.dtype, aligned), {args.sum.tuning.num_blocks, kLineThreads},
                      args.sum.group.early_start, args, stream);
}

}  // namespace epistle::cuda
