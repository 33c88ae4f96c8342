// Combine by lines of rows that the experts are still writing: a row is taken when the kernel that writes it has marked
// it as done (epistle/device/row_flags.hpp). The same lines and sums as in combine_ranks.cu, so ranks may mix both.
//
// A warp looks at 32 of its units at once, a lane for each, and moves those whose rows are done, whatever their order:
// the rows of one token are done at very different times.
#include "dispatch/cuda/device/start_kernel.cuh"
#include "dispatch/cuda/low_latency/kernels.hpp"
#include "dispatch/cuda/low_latency/line_sums.cuh"

namespace epistle::cuda {
namespace {

/// How far a unit has come.
enum class MarkedUnit : int { kWaits, kEnds };

template <class Format, bool kAligned>
struct MarkedSummer : LineSums<kAligned> {
  using Sums = LineSums<kAligned>;
  using Sums::args;
  using Sums::call;
  using Sums::group;
  using Sums::lines;
  using Sums::sources;

  const std::uint32_t* done;
  std::uint32_t number;

  /// What this rank has for the tokens of others; one warp among others. False when a wait was given up.
  __device__ bool send(const Worker& worker) const {
    const int count = this->num_send_units();
    return for_each_unit(
        worker, count,
        [&](int unit, int& k) {
          SendUnit found;
          if (!this->find_send_unit(unit, found)) return true;
          const std::int32_t* record = this->record_of(found.pair);
          return are_done(k, [&](int at) { return record[2 + at]; });
        },
        [&](int unit, int& /*peer*/) {
          SendUnit found;
          if (this->find_send_unit(unit, found)) send_sum(found);
          return MarkedUnit::kEnds;
        });
  }

  /// The tokens of this rank; likewise.
  __device__ bool receive(const Worker& worker) const {
    const HandleArrays& handle = args.handle;
    return for_each_unit(
        worker, static_cast<int>(handle.num_tokens) * lines.combine_chunks,
        [&](int unit, int& k) {
          const std::int64_t first = std::int64_t{lines.by_combine_chunks.quotient(unit)} * handle.top_k;
          return are_done(k, [&](int at) { return own_row(first + at); });
        },
        [&](int unit, int& peer) { return sum_token(unit, peer); });
  }

 private:
  /// Of the rows of a unit, by top-k position from `k` on; `k` becomes the first that is not done, as what is done
  /// stays so.
  template <class RowAt>
  [[nodiscard]] __device__ bool are_done(int& k, const RowAt& row_at) const {
#pragma unroll 1
    for (; k < args.handle.top_k; ++k) {
      const std::int32_t row = row_at(k);
      if (row >= 0 && load_relaxed(done + row) != number) return false;
    }
    return true;
  }
  /// The row here of an entry of this rank's routing; negative: its expert is elsewhere, or nowhere.
  [[nodiscard]] __device__ std::int32_t own_row(std::int64_t entry) const {
    const ExpertPartition partition = args.layout.partition();
    const std::int32_t first = partition.first_expert(group().rank);
    const std::int32_t expert = args.handle.expert_ids[entry];
    const bool own =
        sources.is_void == 0 && expert >= first && expert < first + partition.num_local_experts(group().rank);
    return own ? args.handle.dst_row[entry] : -1;
  }

  /// `is_ready(unit, k)`, by one lane: all rows of it here are done (see are_done()). `move(unit, peer)`, by the warp:
  /// does it, or says who it still waits for.
  template <class IsReady, class Move>
  __device__ bool for_each_unit(const Worker& worker, int count, const IsReady& is_ready, const Move& move) const {
#pragma unroll 1
    for (int first = worker.idx; first < count; first += kWarpSize * worker.count) {
      const int mine = first + lane_id() * worker.count;
      unsigned left = __ballot_sync(kFullWarp, mine < count);
      bool mine_ready = false;
      int k = 0;
      std::uint64_t start_ns = 0;
#pragma unroll 1
      for (std::uint32_t polls = 1; left != 0; ++polls) {
        if (!mine_ready && (left >> lane_id() & 1U) != 0) mine_ready = is_ready(mine, k);
        unsigned ready = __ballot_sync(kFullWarp, mine_ready) & left;
        if (ready != 0) {
          fence_device();  // pairs with that of mark_rows_done(), for all lanes
          __syncwarp();
        }
        const bool all_ready = ready == left;
        int peer = -1;
        bool moved = false;
#pragma unroll 1
        for (; ready != 0; ready &= ready - 1) {
          const int lane = __ffs(static_cast<int>(ready)) - 1;
          if (move(first + lane * worker.count, peer) == MarkedUnit::kWaits) continue;
          left &= ~(1U << lane);
          moved = true;
        }
        if (moved) start_ns = 0;
        if (moved || polls % kPollsPerLook != 0) continue;
        if (start_ns == 0) start_ns = now_ns();
        // Rows here that nobody marks come first: other ranks may wait for what follows from them.
        if (!all_ready) peer = group().rank;
        bool given_up = false;
        if (lane_id() == 0) given_up = gives_up_slowly(call, peer, start_ns, polls);
        if (__any_sync(kFullWarp, given_up) != 0) return false;
      }
    }
    return true;
  }

  /// Rounded sum of rows of this rank, those of the lanes whose `row` is not negative, in their order.
  __device__ void sum_rows(std::int32_t row, float weight, int chunk, Chunk& out) const {
    constexpr int kAtOnce = 4;  // on their way
    ChunkSums<Format> sums;
    sums.clear();
#pragma unroll 1
    for (unsigned left = __ballot_sync(kFullWarp, row >= 0); left != 0;) {
      Chunk data[kAtOnce];
      float weights[kAtOnce];
      const int count = min(__popc(left), kAtOnce);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (i >= count) break;
        const int lane = __ffs(static_cast<int>(left)) - 1;
        this->load_own(__shfl_sync(kFullWarp, row, lane), chunk, data[i]);
        weights[i] = __shfl_sync(kFullWarp, weight, lane);
        left &= left - 1;
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (i < count) sums.add(data[i], weights[i]);
      }
    }
    sums.pack(out);
  }

  __device__ void send_sum(const SendUnit& unit) const {
    const int top_k = args.handle.top_k;
    const std::int32_t* record = this->record_of(unit.pair);
    std::int32_t row = -1;
    float weight = 1.0F;
    if (lane_id() < top_k) {
      row = record[2 + lane_id()];
      if (args.weighted) weight = __int_as_float(record[2 + top_k + lane_id()]);
    }
    if (__any_sync(kFullWarp, row >= 0) == 0) return;
    Chunk out;
    sum_rows(row, weight, unit.chunk, out);
    this->send_chunk(unit.source, unit.stage, unit.chunk, out);
  }

  /// One row per rank, as they come; nothing is kept of a token of which one is missing.
  __device__ MarkedUnit sum_token(int unit, int& peer) const {
    const HandleArrays& handle = args.handle;
    const auto token = lines.by_combine_chunks.quotient(unit);
    const int chunk = unit - token * lines.combine_chunks;
    std::int32_t rank = -1;
    std::int32_t stage = -1;
    if (lane_id() < handle.sends_per_token && sources.is_void == 0) {
      const SendPlace send = handle.sends[std::int64_t{token} * handle.sends_per_token + lane_id()];
      rank = send.dst_rank;
      stage = send.stage;
    }
    const unsigned mask = __ballot_sync(kFullWarp, rank >= 0);
    // Before anything is summed that would have to be summed again.
    for (unsigned left = mask; left != 0; left &= left - 1) {
      const int lane = __ffs(static_cast<int>(left)) - 1;
      const int from = __shfl_sync(kFullWarp, rank, lane);
      if (from == group().rank || has_come(__shfl_sync(kFullWarp, stage, lane), chunk)) continue;
      peer = from;
      return MarkedUnit::kWaits;
    }
    const int num_lines = lines_in_chunk(lines.combine_lines, chunk);
    ChunkSums<Format> sums;
    sums.clear();
#pragma unroll 1
    for (unsigned left = mask; left != 0; left &= left - 1) {
      const int lane = __ffs(static_cast<int>(left)) - 1;
      Chunk data;
      if (__shfl_sync(kFullWarp, rank, lane) == group().rank) {
        sum_own(token, chunk, data);
      } else {
        data.ask(this->parts, this->lines_at(group().rank, __shfl_sync(kFullWarp, stage, lane), chunk), num_lines);
        data.clear_behind(this->parts, this->bytes_of(chunk));
      }
      sums.add(data);
    }
    Chunk out;
    sums.pack(out);
    this->store_sum(token, chunk, out);
    return MarkedUnit::kEnds;
  }

  /// Whether all lines of a chunk are there, by their flags: a lane for each.
  [[nodiscard]] __device__ bool has_come(std::int32_t stage, int chunk) const {
    static_assert(kChunkLines <= kWarpSize);
    bool there = true;
    if (lane_id() < lines_in_chunk(lines.combine_lines, chunk)) {
      const std::byte* line = this->lines_at(group().rank, stage, chunk) + lane_id() * kLineBytes;
      const uint4 last = load_whole(line + kFlagLane * kUnitBytes);
      const uint2 flag = line_flag(call.epoch);
      there = last.z == flag.x && last.w == flag.y;
    }
    return __all_sync(kFullWarp, there) != 0;
  }

  __device__ void sum_own(int token, int chunk, Chunk& out) const {
    const HandleArrays& handle = args.handle;
    const std::int64_t entry = std::int64_t{token} * handle.top_k + lane_id();
    std::int32_t row = -1;
    float weight = 1.0F;
    if (lane_id() < handle.top_k) {
      row = own_row(entry);
      if (args.weighted) weight = handle.weights[entry];
    }
    sum_rows(row, weight, chunk, out);
  }
};

template <class Format, bool kAligned>
__global__ void __launch_bounds__(kLineThreads, 1)
    combine_marked_kernel(const __grid_constant__ MarkedCombineArgs args) {
  __shared__ SourceRows sources;
  CallContext call;
  bool sends = false;
  bool receives = false;
  const auto ask = [&](bool has_sends, bool has_receives) {
    sends = has_sends;
    receives = has_receives;
  };
  const auto move = [&] {
    const MarkedSummer<Format, kAligned> summer{
        {args.sum, args.lines, call, sources}, args.done, load_relaxed(args.number)};
    const auto blocks = static_cast<int>(gridDim.x);
    const auto warp = static_cast<int>(threadIdx.x) / kWarpSize;
    if (sends && !summer.send(line_worker(blocks, warp, kLineWarps))) return;
    // Warps that have nothing to send begin to receive.
    if (receives) static_cast<void>(summer.receive(line_worker(blocks, kLineWarps - 1 - warp, kLineWarps)));
  };
  run_line_sum(args, call, sources, ask, move);
}

using MarkedKernel = void (*)(MarkedCombineArgs);

MarkedKernel combine_marked(DType dtype, bool aligned) {
  return with_format(dtype, [&](auto format) -> MarkedKernel {
    using Format = decltype(format);
    return aligned ? combine_marked_kernel<Format, true> : combine_marked_kernel<Format, false>;
  });
}

}  // namespace

const void* marked_combine_address(DType dtype, bool aligned) noexcept {
  return reinterpret_cast<const void*>(combine_marked(dtype, aligned));
}

cudaError_t launch_marked(const MarkedCombineArgs& args, bool aligned, cudaStream_t stream) {
  return start_kernel(combine_marked(args.sum.dtype, aligned), {args.sum.tuning.num_blocks, kLineThreads},
                      args.sum.group.early_start, args, stream);
}

}  // namespace epistle::cuda
