// Combine by lines: the ranks of the experts send what they have for each token of another rank, one row per (token,
// rank), or one per (token, expert) for flat sums of expert rows, to fixed places at the token's rank, whatever the
// others do; that rank adds as the lines arrive, in the documented order.
#include "dispatch/cuda/device/formats.cuh"
#include "dispatch/cuda/device/received_pairs.cuh"
#include "dispatch/cuda/device/start_kernel.cuh"
#include "dispatch/cuda/direct/sum_call.cuh"
#include "dispatch/cuda/low_latency/line_launch.hpp"
#include "dispatch/cuda/low_latency/send_lines.cuh"

namespace epistle::cuda {
namespace {

/// fp32 sums of a chunk's elements.
template <class Format>
struct ChunkSums {
  static constexpr int kVectors = Chunk::kVectors;
  float value[kVectors][Format::kElements];

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
#pragma unroll
      for (int e = 0; e < Format::kElements; ++e) value[i][e] = 0.0F;
    }
  }
  __device__ void add(const Chunk& row, bool weighted, float weight) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      float elements[Format::kElements];
      Format::unpack(row.v[i], elements);
#pragma unroll
      for (int e = 0; e < Format::kElements; ++e) {
        const float term = weighted ? __fmul_rn(weight, elements[e]) : elements[e];
        value[i][e] = __fadd_rn(value[i][e], term);
      }
    }
  }
  __device__ void pack(Chunk& row) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) row.v[i] = Format::pack(value[i]);
  }
};

/// Rows of this rank to be added, a lane for each top-k position.
struct OwnTerms {
  std::int32_t row = -1;
  float weight = 0.0F;
};

/// `kAligned`: every row given and every row of the result begins at a multiple of 16 bytes.
template <class Format, bool kAligned>
struct LineSummer {
  const SumArgs& args;
  const LinePlan& lines;
  const CallContext& call;

  [[nodiscard]] __device__ const DeviceGroup& group() const { return args.group; }
  [[nodiscard]] __device__ bool token_major() const { return args.layout.token_major(); }
  [[nodiscard]] __device__ bool flat() const { return !args.layout.can_combine_per_rank(); }
  [[nodiscard]] __device__ std::int64_t row_bytes() const { return lines.combine_row_bytes; }

  /// What this rank has for the tokens of others; one warp among others.
  __device__ void send(const Worker& worker) const {
    const HandleTotals& totals = *args.handle.totals;
    const int others = group().num_ranks - 1;
    const int chunks = lines.combine_chunks();
    const int count = longest_source(group(), totals) * others * chunks;
#pragma unroll 1
    for (int unit = worker.idx; unit < count; unit += worker.count) {
      const auto row = static_cast<int>(static_cast<unsigned>(unit) / static_cast<unsigned>(chunks));
      const auto idx = static_cast<std::int32_t>(static_cast<unsigned>(row) / static_cast<unsigned>(others));
      int source = group().rank + 1 + row - idx * others;
      if (source >= group().num_ranks) source -= group().num_ranks;
      const std::int32_t begin = totals.pair_begin[source];
      if (begin + idx >= totals.pair_begin[source + 1]) continue;
      send_pair(source, begin + idx, totals.stage_begin[source] + idx, unit - row * chunks);
    }
  }

  /// The tokens of this rank; likewise.
  __device__ void receive(const Worker& worker) const {
    const int chunks = lines.combine_chunks();
    const int count = static_cast<int>(args.handle.num_tokens) * chunks;
#pragma unroll 1
    for (int unit = worker.idx; unit < count; unit += worker.count) {
      const auto token = static_cast<int>(static_cast<unsigned>(unit) / static_cast<unsigned>(chunks));
      const int chunk = unit - token * chunks;
      ChunkSums<Format> sums;
      const bool there = flat() ? sum_experts(token, chunk, sums) : sum_ranks(token, chunk, sums);
      if (!there) return;
      Chunk out;
      sums.pack(out);
      out.store(args.out + token * args.out_stride + std::int64_t{chunk} * Chunk::kBytes,
                bytes_in_chunk<Chunk>(row_bytes(), chunk), kAligned);
    }
  }

 private:
  __device__ void load_own(std::int32_t row, int chunk, Chunk& data) const {
    data.load(args.rows + row * row_bytes() + std::int64_t{chunk} * Chunk::kBytes,
              bytes_in_chunk<Chunk>(row_bytes(), chunk), kAligned);
  }
  [[nodiscard]] __device__ std::byte* lines_at(int rank, std::int64_t slot, int chunk) const {
    return group().section(rank, BufferSection::kCombineLines) + lines.combine_slot_offset(call.epoch, slot) +
           chunk * kChunkLines * kLineBytes;
  }
  __device__ void send_chunk(int rank, std::int64_t slot, int chunk, const Chunk& data) const {
    data.send(lines_at(rank, slot, chunk), lines_in_chunk(lines.combine_lines, chunk), line_flag(call.epoch));
  }
  [[nodiscard]] __device__ bool await_chunk(int rank, std::int64_t slot, int chunk, Chunk& data) const {
    const std::byte* from = lines_at(group().rank, slot, chunk);
    const int num_lines = lines_in_chunk(lines.combine_lines, chunk);
    const uint2 flag = line_flag(call.epoch);
    if (!poll_lines(call, rank, [&] { return data.look(from, num_lines, flag); })) return false;
    data.clear_behind(bytes_in_chunk<Chunk>(row_bytes(), chunk));
    return true;
  }

  __device__ void send_pair(int source, std::int32_t pair, std::int32_t stage, int chunk) const {
    if (token_major()) {
      Chunk data;
      load_own(pair, chunk, data);
      return send_chunk(source, stage, chunk, data);
    }
    const int top_k = args.handle.top_k;
    const auto* record =
        reinterpret_cast<const std::int32_t*>(args.handle.pair_records + pair * args.layout.pair_record_bytes());
    OwnTerms terms;
    if (lane_id() < top_k) {
      terms.row = record[2 + lane_id()];
      terms.weight = __int_as_float(record[2 + top_k + lane_id()]);
    }
    const unsigned mask = __ballot_sync(kFullWarp, terms.row >= 0);
    if (flat()) {
      const std::int64_t first_slot = std::int64_t{record[1]} * top_k;
#pragma unroll 1
      for (unsigned left = mask; left != 0; left &= left - 1) {
        const int position = __ffs(static_cast<int>(left)) - 1;
        Chunk data;
        load_own(__shfl_sync(kFullWarp, terms.row, position), chunk, data);
        send_chunk(source, first_slot + position, chunk, data);
      }
    } else if (mask != 0) {
      Chunk data;
      sum_own(terms, mask, chunk, data);
      send_chunk(source, stage, chunk, data);
    }
  }

  /// Rounded sum of the rows of the lanes in `mask`, in their order.
  __device__ void sum_own(const OwnTerms& terms, unsigned mask, int chunk, Chunk& out) const {
    constexpr int kRows = kAligned ? 4 : 1;  // on their way at once
    ChunkSums<Format> sums;
    sums.clear();
#pragma unroll 1
    for (unsigned left = mask; left != 0;) {
      Chunk rows[kRows];
      float weights[kRows];
      int count = 0;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        if (left == 0) continue;
        const int lane = __ffs(static_cast<int>(left)) - 1;
        left &= left - 1;
        load_own(__shfl_sync(kFullWarp, terms.row, lane), chunk, rows[i]);
        weights[i] = __shfl_sync(kFullWarp, terms.weight, lane);
        count = i + 1;
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        if (i < count) sums.add(rows[i], args.weighted, weights[i]);
      }
    }
    sums.pack(out);
  }

  /// This rank's rows of one of its own tokens.
  [[nodiscard]] __device__ OwnTerms own_terms(int token) const {
    const HandleArrays& handle = args.handle;
    const ExpertPartition partition = args.layout.partition();
    const std::int32_t first = partition.first_expert(group().rank);
    const std::int32_t end = first + partition.num_local_experts(group().rank);
    OwnTerms terms;
    if (lane_id() < handle.top_k) {
      const std::int64_t entry = std::int64_t{token} * handle.top_k + lane_id();
      const std::int32_t expert = handle.expert_ids[entry];
      terms.weight = handle.weights[entry];
      if (expert >= first && expert < end) terms.row = handle.dst_row[entry];
    }
    return terms;
  }

  /// One row per rank; false when a wait was given up.
  __device__ bool sum_ranks(int token, int chunk, ChunkSums<Format>& sums) const {
    const HandleArrays& handle = args.handle;
    SendPlace send{-1, -1, -1, -1};
    float weight = 1.0F;
    // Asked for at once, whether there are rows here or not.
    const OwnTerms terms = token_major() ? OwnTerms{} : own_terms(token);
    if (lane_id() < handle.sends_per_token && handle.totals->is_void == 0) {
      const std::int64_t place = std::int64_t{token} * handle.sends_per_token + lane_id();
      send = handle.sends[place];
      weight = handle.send_weights[place];
    }
    const unsigned mask = __ballot_sync(kFullWarp, send.dst_rank >= 0);
    const unsigned own = __ballot_sync(kFullWarp, send.dst_rank == group().rank);
    const bool weighted = args.weighted && token_major();
    Chunk mine;
    if (own != 0) {
      if (token_major()) {
        load_own(__shfl_sync(kFullWarp, send.row, __ffs(static_cast<int>(own)) - 1), chunk, mine);
      } else {
        sum_own(terms, __ballot_sync(kFullWarp, terms.row >= 0), chunk, mine);
      }
    }
    sums.clear();
#pragma unroll 1
    for (unsigned left = mask; left != 0; left &= left - 1) {
      const int lane = __ffs(static_cast<int>(left)) - 1;
      const float factor = __shfl_sync(kFullWarp, weight, lane);
      if ((own >> lane & 1U) != 0) {
        sums.add(mine, weighted, factor);
        continue;
      }
      Chunk theirs;
      const int rank = __shfl_sync(kFullWarp, send.dst_rank, lane);
      if (!await_chunk(rank, __shfl_sync(kFullWarp, send.stage, lane), chunk, theirs)) return false;
      sums.add(theirs, weighted, factor);
    }
    return true;
  }

  /// One row per expert, in top-k order; likewise.
  __device__ bool sum_experts(int token, int chunk, ChunkSums<Format>& sums) const {
    const HandleArrays& handle = args.handle;
    const ExpertPartition partition = args.layout.partition();
    const std::int64_t first_entry = std::int64_t{token} * handle.top_k;
    OwnTerms terms;
    int rank = -1;
    if (lane_id() < handle.top_k && handle.totals->is_void == 0) {
      terms.row = handle.dst_row[first_entry + lane_id()];
      terms.weight = handle.weights[first_entry + lane_id()];
      const std::int32_t expert = handle.expert_ids[first_entry + lane_id()];
      if (expert >= 0) rank = partition.rank_of(expert);
    }
    sums.clear();
#pragma unroll 1
    for (unsigned left = __ballot_sync(kFullWarp, terms.row >= 0 && rank >= 0); left != 0; left &= left - 1) {
      const int position = __ffs(static_cast<int>(left)) - 1;
      const int from = __shfl_sync(kFullWarp, rank, position);
      Chunk data;
      if (from == group().rank) {
        load_own(__shfl_sync(kFullWarp, terms.row, position), chunk, data);
      } else if (!await_chunk(from, first_entry + position, chunk, data)) {
        return false;
      }
      sums.add(data, args.weighted, __shfl_sync(kFullWarp, terms.weight, position));
    }
    return true;
  }
};

template <class Format, bool kAligned>
__global__ void __launch_bounds__(kLineThreads, 1) line_combine_kernel(const __grid_constant__ LineCombineArgs args) {
  CallContext call;
  const bool runs = begin_sum(args.sum, call);
  if (args.next_starts_early) let_next_kernel_start();
  if (!runs) return;
  const LineSummer<Format, kAligned> summer{args.sum, args.lines, call};
  // The last block moves no rows: it sees to what the ranks agree on.
  const int num_movers = max(1, static_cast<int>(gridDim.x) - 1);
  const bool moves_rows = static_cast<int>(blockIdx.x) < num_movers;
  const bool agrees = blockIdx.x == gridDim.x - 1;
  const Worker worker = line_worker(num_movers);
  if ((args.sum.phases & kSendPhase) != 0) {
    if (agrees) announce(call);
    if (moves_rows && args.sum.group.num_ranks > 1) summer.send(worker);
  }
  if ((args.sum.phases & kReceivePhase) == 0) return;
  // Every thread has read the epoch. The next kernel reads it when all blocks of this one have ended.
  __syncthreads();
  leave_call(call);
  if (moves_rows) summer.receive(worker);
  if (agrees && !wait_all_ready(call)) abandon_call(call, true);
}

using CombineKernel = void (*)(LineCombineArgs);

CombineKernel combine_kernel(DType dtype, bool aligned) {
  return with_format(dtype, [&](auto format) -> CombineKernel {
    using Format = decltype(format);
    return aligned ? line_combine_kernel<Format, true> : line_combine_kernel<Format, false>;
  });
}

}  // namespace

const void* line_combine_kernel_address(DType dtype, bool aligned) noexcept {
  return reinterpret_cast<const void*>(combine_kernel(dtype, aligned));
}

cudaError_t launch_line_combine(const LineCombineArgs& args, cudaStream_t stream) {
  const std::uint64_t bits = reinterpret_cast<std::uint64_t>(args.sum.rows) |
                             reinterpret_cast<std::uint64_t>(args.sum.out) |
                             static_cast<std::uint64_t>(args.sum.out_stride);
  return start_kernel(combine_kernel(args.sum.dtype, bits % kVectorBytes == 0),
                      {args.sum.tuning.num_blocks, kLineThreads}, args.sum.group.early_start, args, stream);
}

}  // namespace epistle::cuda
