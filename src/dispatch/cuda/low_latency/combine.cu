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

/// Whose rows this rank has: what of the handle's totals says so, in shared memory.
struct SourceRows {
  std::int32_t is_void;
  std::int32_t pair_begin[kMaxRanks + 1];
  std::int32_t stage_begin[kMaxRanks];

  /// What a thread has read of it.
  struct Some {
    std::int32_t is_void = 0;
    std::int32_t pair_begin = 0;
    std::int32_t stage_begin = 0;
  };
  /// Asks for what the thread has to keep(), before the block meets.
  __device__ static Some load(const HandleTotals& totals, int num_ranks) {
    const auto source = static_cast<int>(threadIdx.x);
    Some some;
    if (source > num_ranks) return some;
    some.pair_begin = totals.pair_begin[source];
    if (source < num_ranks) some.stage_begin = totals.stage_begin[source];
    if (source == 0) some.is_void = static_cast<std::int32_t>(totals.is_void);
    return some;
  }
  __device__ void keep(const Some& some, int num_ranks) {
    const auto source = static_cast<int>(threadIdx.x);
    if (source > num_ranks) return;
    pair_begin[source] = some.pair_begin;
    if (source < num_ranks) stage_begin[source] = some.stage_begin;
    if (source == 0) is_void = some.is_void;
  }
};

/// What the handle knows of a token of this rank: by top-k position its expert and, if that is here, its row, and by
/// place where it was sent.
struct TokenTerms {
  std::int32_t expert = -1;
  std::int32_t row = -1;
  float row_weight = 0.0F;
  std::int32_t dst_rank = -1;
  std::int32_t dst_row = -1;
  std::int32_t stage = -1;
  float weight = 1.0F;
};

/// `kAligned`: every row given and every row of the result begins at a multiple of 16 bytes.
template <class Format, bool kAligned>
struct LineSummer {
  const SumArgs& args;
  const LinePlan& lines;
  const CallContext& call;
  const SourceRows& sources;

  [[nodiscard]] __device__ const DeviceGroup& group() const { return args.group; }
  [[nodiscard]] __device__ bool token_major() const { return args.layout.token_major(); }
  [[nodiscard]] __device__ bool flat() const { return !args.layout.can_combine_per_rank(); }
  [[nodiscard]] __device__ std::int64_t row_bytes() const { return lines.combine_row_bytes; }

  /// What this rank has for the tokens of others; one warp among others.
  __device__ void send(const Worker& worker) const {
    const int others = group().num_ranks - 1;
    const int chunks = lines.combine_chunks;
    const int count = longest_source(group(), sources) * others * chunks;
#pragma unroll 1
    for (int unit = worker.idx; unit < count; unit += worker.count) {
      const auto row = lines.by_combine_chunks.quotient(unit);
      const auto idx = lines.by_others.quotient(row);
      int source = group().rank + 1 + row - idx * others;
      if (source >= group().num_ranks) source -= group().num_ranks;
      const std::int32_t begin = sources.pair_begin[source];
      if (begin + idx >= sources.pair_begin[source + 1]) continue;
      send_pair(source, begin + idx, sources.stage_begin[source] + idx, unit - row * chunks);
    }
  }

  /// What is known of the token of a unit that this rank receives, if there is one.
  [[nodiscard]] __device__ TokenTerms look_up(int unit) const {
    const HandleArrays& handle = args.handle;
    const auto token = lines.by_combine_chunks.quotient(unit);
    TokenTerms terms;
    if (token >= static_cast<int>(handle.num_tokens)) return terms;
    if (!token_major() && lane_id() < handle.top_k) {
      const std::int64_t entry = std::int64_t{token} * handle.top_k + lane_id();
      terms.expert = handle.expert_ids[entry];
      terms.row = handle.dst_row[entry];
      terms.row_weight = handle.weights[entry];
    }
    if (lane_id() < handle.sends_per_token) {
      const std::int64_t place = std::int64_t{token} * handle.sends_per_token + lane_id();
      const SendPlace send = handle.sends[place];
      terms.dst_rank = send.dst_rank;
      terms.dst_row = send.row;
      terms.stage = send.stage;
      terms.weight = handle.send_weights[place];
    }
    return terms;
  }

  /// The tokens of this rank; likewise. `first`: what look_up() has said of the first unit, by thread.
  __device__ void receive(const Worker& worker, const TokenTerms* first) const {
    const int chunks = lines.combine_chunks;
    const int count = static_cast<int>(args.handle.num_tokens) * chunks;
#pragma unroll 1
    for (int unit = worker.idx; unit < count; unit += worker.count) {
      const auto token = lines.by_combine_chunks.quotient(unit);
      const int chunk = unit - token * chunks;
      ChunkSums<Format> sums;
      const TokenTerms terms = unit == worker.idx ? first[threadIdx.x] : look_up(unit);
      const bool there = flat() ? sum_experts(token, chunk, sums) : sum_ranks(terms, chunk, sums);
      if (!there) return;
      Chunk out;
      sums.pack(out);
      out.store(args.out + token * args.out_stride + std::int64_t{chunk} * Chunk::kBytes,
                bytes_in_chunk<Chunk>(row_bytes(), chunk), kAligned);
    }
  }

 private:
  __device__ void load_own(std::int32_t row, int chunk, Chunk& data) const {
    data.load(args.rows + wide_product(row, row_bytes()) + chunk * Chunk::kBytes,
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
  [[nodiscard]] __device__ OwnTerms own_terms(const TokenTerms& token) const {
    const ExpertPartition partition = args.layout.partition();
    const std::int32_t first = partition.first_expert(group().rank);
    const std::int32_t end = first + partition.num_local_experts(group().rank);
    return {token.expert >= first && token.expert < end ? token.row : -1, token.row_weight};
  }

  /// One row per rank; false when a wait was given up.
  __device__ bool sum_ranks(const TokenTerms& terms, int chunk, ChunkSums<Format>& sums) const {
    const std::int32_t dst_rank = sources.is_void == 0 ? terms.dst_rank : -1;
    const unsigned mask = __ballot_sync(kFullWarp, dst_rank >= 0);
    const unsigned own = __ballot_sync(kFullWarp, dst_rank == group().rank);
    const bool weighted = args.weighted && token_major();
    Chunk mine;
    if (own != 0) {
      if (token_major()) {
        load_own(__shfl_sync(kFullWarp, terms.dst_row, __ffs(static_cast<int>(own)) - 1), chunk, mine);
      } else {
        const OwnTerms here = own_terms(terms);
        sum_own(here, __ballot_sync(kFullWarp, here.row >= 0), chunk, mine);
      }
    }
    sums.clear();
#pragma unroll 1
    for (unsigned left = mask; left != 0; left &= left - 1) {
      const int lane = __ffs(static_cast<int>(left)) - 1;
      const float factor = __shfl_sync(kFullWarp, terms.weight, lane);
      if ((own >> lane & 1U) != 0) {
        sums.add(mine, weighted, factor);
        continue;
      }
      Chunk theirs;
      const int rank = __shfl_sync(kFullWarp, dst_rank, lane);
      if (!await_chunk(rank, __shfl_sync(kFullWarp, terms.stage, lane), chunk, theirs)) return false;
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
    if (lane_id() < handle.top_k && sources.is_void == 0) {
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
__global__ void __launch_bounds__(kLineThreads, 1) combine_lines_kernel(const __grid_constant__ LineCombineArgs args) {
  __shared__ volatile std::uint32_t touched;
  __shared__ SourceRows sources;
  __shared__ TokenTerms first[kLineThreads];
  const std::uint32_t touch = touch_args(args);
  // The last block moves no rows: it sees to what the ranks agree on.
  const int num_movers = max(1, static_cast<int>(gridDim.x) - 1);
  const bool moves_rows = static_cast<int>(blockIdx.x) < num_movers;
  const bool agrees = blockIdx.x == gridDim.x - 1;
  const auto warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const Worker sending = line_worker(num_movers, warp, kLineWarps);
  // Warps that have nothing to send begin to receive.
  const Worker receiving = line_worker(num_movers, kLineWarps - 1 - warp, kLineWarps);
  CallContext call;
  const LineSummer<Format, kAligned> summer{args.sum, args.lines, call, sources};
  wait_for_start(args.sum.group);
  if (args.next_starts_early) let_next_kernel_start();
  // All that lies in memory is asked for at once.
  const SourceRows::Some some = SourceRows::load(*args.sum.handle.totals, args.sum.group.num_ranks);
  TokenTerms terms;
  if (moves_rows && (args.sum.phases & kReceivePhase) != 0) terms = summer.look_up(receiving.idx);
  if (!next_sum_call(args.sum, call)) return;
  sources.keep(some, args.sum.group.num_ranks);
  first[threadIdx.x] = terms;
  if (lane_id() == 0) touched = touch;
  // Also: every thread has read the epoch. The next kernel reads it when all blocks of this one have ended.
  __syncthreads();
  if ((args.sum.phases & kSendPhase) != 0) {
    if (agrees) announce(call);
    if (moves_rows && args.sum.group.num_ranks > 1) summer.send(sending);
  }
  if ((args.sum.phases & kReceivePhase) == 0) return;
  leave_call(call, kLineThreads - 1);
  if (moves_rows) summer.receive(receiving, first);
  if (agrees && !wait_all_ready(call)) abandon_call(call, true);
}

using CombineKernel = void (*)(LineCombineArgs);

CombineKernel combine_kernel(DType dtype, bool aligned) {
  return with_format(dtype, [&](auto format) -> CombineKernel {
    using Format = decltype(format);
    return aligned ? combine_lines_kernel<Format, true> : combine_lines_kernel<Format, false>;
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
