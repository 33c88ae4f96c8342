// What both kinds of combine by lines are made of: sums of chunks in registers, and what the handle knows.
#pragma once

#include <cstdint>

#include "dispatch/cuda/device/formats.cuh"
#include "dispatch/cuda/device/received_pairs.cuh"
#include "dispatch/cuda/direct/sum_call.cuh"
#include "dispatch/cuda/low_latency/line_launch.hpp"
#include "dispatch/cuda/low_latency/send_lines.cuh"

namespace epistle::cuda {

/// fp32 sums of a chunk's elements.
template <class Format, class ChunkType = Chunk>
struct ChunkSums {
  static constexpr int kVectors = ChunkType::kVectors;
  float value[kVectors][Format::kElements];

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
#pragma unroll
      for (int e = 0; e < Format::kElements; ++e) value[i][e] = 0.0F;
    }
  }
  /// Adds weight x row; a weight of one leaves every bit of the row as it is, but for NaNs, which are all the same in
  /// the end.
  __device__ void add(const ChunkType& row, float weight) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      float elements[Format::kElements];
      Format::unpack(row.v[i], elements);
#pragma unroll
      for (int e = 0; e < Format::kElements; ++e) {
        value[i][e] = __fadd_rn(value[i][e], __fmul_rn(weight, elements[e]));
      }
    }
  }
  /// Adds a row whose weight is one.
  __device__ void add(const ChunkType& row) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      float elements[Format::kElements];
      Format::unpack(row.v[i], elements);
#pragma unroll
      for (int e = 0; e < Format::kElements; ++e) value[i][e] = __fadd_rn(value[i][e], elements[e]);
    }
  }
  __device__ void pack(ChunkType& row) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) row.v[i] = Format::pack(value[i]);
  }
};

/// Whose rows this rank has: what of the handle's totals says so, in shared memory.
struct SourceRows {
  std::int32_t is_void;
  std::int32_t longest;  ///< most rows of one of the other ranks
  std::int32_t pair_begin[kMaxRanks + 1];
  std::int32_t stage_begin[kMaxRanks];

  /// What a lane has read of it.
  struct Some {
    std::int32_t is_void = 0;
    std::int32_t pair_begin = 0;
    std::int32_t pair_end = 0;
    std::int32_t stage_begin = 0;
  };
  /// Asks for what the first warps have to keep(), before the block meets.
  __device__ static Some load(const HandleTotals& totals, int num_ranks) {
    const auto source = static_cast<int>(threadIdx.x);
    Some some;
    if (source >= num_ranks) return some;
    some.pair_begin = totals.pair_begin[source];
    some.pair_end = totals.pair_begin[source + 1];
    some.stage_begin = totals.stage_begin[source];
    some.is_void = static_cast<std::int32_t>(totals.is_void);
    return some;
  }
  /// `longest` must be 0 by then.
  __device__ void keep(const Some& some, int num_ranks, int rank) {
    const auto source = static_cast<int>(threadIdx.x);
    if (source >= (num_ranks + kWarpSize - 1) / kWarpSize * kWarpSize) return;
    const std::int32_t count = source < num_ranks && source != rank ? some.pair_end - some.pair_begin : 0;
    const std::int32_t most = __reduce_max_sync(kFullWarp, count);
    if (lane_id() == 0) atomicMax(&longest, most);
    if (source >= num_ranks) return;
    pair_begin[source] = some.pair_begin;
    if (source == num_ranks - 1) pair_begin[num_ranks] = some.pair_end;
    stage_begin[source] = some.stage_begin;
    if (source == 0) is_void = some.is_void;
  }
};

/// A chunk of a row that another rank's token has here: the `pair`-th row that came, of rank `source`.
struct SendUnit {
  int source;
  int chunk;
  std::int32_t pair;
  std::int32_t stage;  ///< where it goes back to at its source
};

/// `kAligned`: every row given and every row of the result begins at a multiple of 16 bytes.
template <bool kAligned, class ChunkType = Chunk>
struct LineSums {
  const SumArgs& args;
  const LinePlan& lines;
  const CallContext& call;
  const SourceRows& sources;
  typename ChunkType::Parts parts = {};

  [[nodiscard]] __device__ const DeviceGroup& group() const { return args.group; }
  [[nodiscard]] __device__ std::int64_t row_bytes() const { return lines.combine_row_bytes; }
  [[nodiscard]] __device__ int bytes_of(int chunk) const { return bytes_in_chunk<ChunkType>(row_bytes(), chunk); }

  /// Units of this rank's rows for the tokens of others, and the `unit`-th of them; false where there is none, as
  /// sources, which take turns, have different numbers.
  [[nodiscard]] __device__ int num_send_units() const {
    return sources.longest * (group().num_ranks - 1) * lines.combine_chunks;
  }
  [[nodiscard]] __device__ bool find_send_unit(int unit, SendUnit& found) const {
    return find_send_unit(unit, sources, found);
  }
  /// `totals`: SourceRows, or the handle's totals, before those are there.
  template <class Totals>
  [[nodiscard]] __device__ bool find_send_unit(int unit, const Totals& totals, SendUnit& found) const {
    const int others = group().num_ranks - 1;
    const auto row = lines.by_combine_chunks.quotient(unit);
    const auto idx = lines.by_others.quotient(row);
    int source = group().rank + 1 + row - idx * others;
    if (source >= group().num_ranks) source -= group().num_ranks;
    found.source = source;
    found.chunk = unit - row * lines.combine_chunks;
    found.pair = totals.pair_begin[source] + idx;
    found.stage = totals.stage_begin[source] + idx;
    return found.pair < totals.pair_begin[source + 1];
  }
  /// What is known of a received row of an expert layout (DispatchLayout::pair_record_bytes): its token, and by top-k
  /// position rows here and weights.
  [[nodiscard]] __device__ const std::int32_t* record_of(std::int32_t pair) const {
    return reinterpret_cast<const std::int32_t*>(args.handle.pair_records +
                                                 wide_product(pair, args.layout.pair_record_bytes()));
  }

  [[nodiscard]] __device__ const std::byte* own_chunk(std::int32_t row, int chunk) const {
    return args.rows + wide_product(row, row_bytes()) + chunk * ChunkType::kBytes;
  }
  __device__ void load_own(std::int32_t row, int chunk, ChunkType& data) const {
    data.load(parts, own_chunk(row, chunk), bytes_of(chunk), kAligned);
  }
  [[nodiscard]] __device__ std::byte* lines_at(int rank, std::int64_t slot, int chunk) const {
    return group().section(rank, BufferSection::kCombineLines) + lines.combine_slot_offset(call.epoch, slot) +
           chunk * ChunkType::kLines * kLineBytes;
  }
  __device__ void send_chunk(int rank, std::int64_t slot, int chunk, const ChunkType& data) const {
    data.send(parts, lines_at(rank, slot, chunk), lines_in_chunk<ChunkType>(lines.combine_lines, chunk),
              line_flag(call.epoch));
  }
  /// Waits for a chunk of another rank; false when the wait was given up.
  [[nodiscard]] __device__ bool await_chunk(int rank, std::int64_t slot, int chunk, ChunkType& data) const {
    const std::byte* from = lines_at(group().rank, slot, chunk);
    const int num_lines = lines_in_chunk<ChunkType>(lines.combine_lines, chunk);
    const uint2 flag = line_flag(call.epoch);
    return poll_lines(call, rank, [&] { return data.look(parts, from, num_lines, flag); });
  }
  __device__ void store_sum(std::int32_t token, int chunk, const ChunkType& data) const {
    data.store(parts, args.out + token * args.out_stride + std::int64_t{chunk} * ChunkType::kBytes, bytes_of(chunk),
               kAligned);
  }
};

/// The part of a combine by lines that its kinds have in common: `move()` sends and receives,
/// `ask()` comes before, while it is not known yet whether the call may begin.
template <class Ask, class Move>
__device__ void run_line_sum(const LineCombineArgs& args, CallContext& call, SourceRows& sources, const Ask& ask,
                             const Move& move) {
  __shared__ volatile std::uint32_t touched[kLineWarps];
  const std::uint32_t touch = touch_args(args);
  const SumArgs& sum = args.sum;
  const DeviceGroup& group = sum.group;
  // The last block also sees to what the ranks agree on.
  const bool agrees = blockIdx.x == gridDim.x - 1;
  const bool has_send = (sum.phases & kSendPhase) != 0;
  const bool has_receive = (sum.phases & kReceivePhase) != 0;
  if (threadIdx.x == 0) sources.longest = 0;
  __syncthreads();
  wait_for_start(group);
  if (args.next_starts_early) let_next_kernel_start();
  // All that lies in memory is asked for at once.
  const CallStart start = sum_call_start(sum);
  const NextCall next(group, start);
  const SourceRows::Some some = SourceRows::load(*sum.handle.totals, group.num_ranks);
  ask(has_send && group.num_ranks > 1, has_receive);
  if (!next.finish(group, start, call)) return;
  sources.keep(some, group.num_ranks, group.rank);
  if (lane_id() == 0) touched[threadIdx.x / kWarpSize] = touch;
  // Also: every thread has read the epoch. The next kernel reads it when all blocks of this one have ended.
  __syncthreads();
  if (agrees && has_send) {
    announce(group, call, static_cast<int>(threadIdx.x), kLineThreads);
    // Here and not in the dispatch: what a kernel writes to the host it waits for, before the next one starts.
    if (args.passed_id != nullptr && threadIdx.x == 0) {
      *static_cast<volatile std::uint64_t*>(args.passed_id) = args.prepare_id;
    }
  }
  if (has_receive) leave_call(group, call, kLineThreads - 1);
  move();
  if (has_receive && agrees && !wait_all_ready(call)) abandon_call(call, true);
}

}  // namespace epistle::cuda
