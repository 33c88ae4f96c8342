// Combine by lines where the ranks of the experts sum first: each sends one row per (token, rank) to a fixed place at
// the token's rank, whatever the others do; that rank adds as the lines arrive, in the documented order.
//
// A warp moves one chunk of one token at a time. While it adds the rows of a unit, what the handle knows of the next
// one is on its way; as soon as they are added, the rows of the next are asked for, before the sum is sent, or what
// others send for it is waited for.
#include <climits>

#include "dispatch/cuda/device/start_kernel.cuh"
#include "dispatch/cuda/low_latency/kernels.hpp"
#include "dispatch/cuda/low_latency/line_sums.cuh"
#include "dispatch/cuda/low_latency/staged_rows.cuh"

namespace epistle::cuda {
namespace {

constexpr std::int64_t kStagedBytes = std::int64_t{kStageBytes} * kLineWarps;

/// What a warp does at once: a chunk of a row to another rank, or of a token of this one.
struct Unit {
  bool is_there = false;  ///< sources, which take turns, have different numbers of rows
  bool sends = false;
  int chunk = 0;
  int source = 0;        ///< whose token it is
  std::int32_t idx = 0;  ///< sent: the pair; else the token
  std::int32_t stage = 0;
};

/// What the handle knows of a unit, a lane for each top-k position, and for each rank that the token goes to.
struct Terms {
  std::int32_t expert = -1;
  std::int32_t row = -1;  ///< of this rank
  float row_weight = 0.0F;
  std::int32_t dst_rank = -1;
  std::int32_t stage = -1;
  float weight = 1.0F;
};

/// The units of a warp in their order.
struct Cursor {
  Worker sending;
  Worker receiving;
  int num_sends;  ///< the first is looked at before they are counted
  int num_receives;

  [[nodiscard]] __device__ bool has_more() const { return sending.idx < num_sends || receiving.idx < num_receives; }
};

template <class Format, class ChunkType, bool kAligned, bool kTokenRows>
struct RankSummer : LineSums<kAligned, ChunkType> {
  using Sums = LineSums<kAligned, ChunkType>;
  using Sums::args;
  using Sums::call;
  using Sums::group;
  using Sums::lines;
  using Sums::sources;

  using Stage = RowStage<ChunkType, kTokenRows>;

  TermList list;  ///< of the unit under way

  /// The next unit of a warp. `totals`: as in find_send_unit().
  template <class Totals>
  [[nodiscard]] __device__ Unit next(Cursor& cursor, const Totals& totals) const {
    Unit unit;
    if (cursor.sending.idx < cursor.num_sends) {
      SendUnit found;
      unit.is_there = this->find_send_unit(cursor.sending.idx, totals, found);
      unit.sends = true;
      unit.chunk = found.chunk;
      unit.source = found.source;
      unit.idx = found.pair;
      unit.stage = found.stage;
      cursor.sending.idx += cursor.sending.count;
    } else if (cursor.receiving.idx < cursor.num_receives) {
      unit.idx = lines.by_combine_chunks.quotient(cursor.receiving.idx);
      unit.is_there = true;
      unit.chunk = cursor.receiving.idx - unit.idx * lines.combine_chunks;
      cursor.receiving.idx += cursor.receiving.count;
    }
    return unit;
  }

  /// Asks for what is known of a unit.
  [[nodiscard]] __device__ Terms ask(const Unit& unit) const {
    if (!unit.is_there) return {};
    return unit.sends ? ask_pair(unit.idx) : ask_token(unit.idx);
  }

  /// Lists the rows of a unit, and sends for them; the number of them.
  __device__ int ask_rows(const Unit& unit, const Terms& terms, Stage& stage) const {
    if (!unit.is_there) return 0;
    const bool has_row = terms.row >= 0 && (unit.sends || is_own(terms));
    const unsigned mask = __ballot_sync(kFullWarp, has_row);
    const int count = __popc(mask);
    const int place = __popc(mask & ((1U << lane_id()) - 1));
    __syncwarp();  // the list of the unit before is not needed any more
    if (has_row) list.store(place, {terms.row, args.weighted ? terms.row_weight : 1.0F});
    __syncwarp();
    if constexpr (kAligned) {
      const ChunkOfRows chunks{this->own_chunk(0, unit.chunk), static_cast<std::uint32_t>(this->row_bytes()),
                               this->bytes_of(unit.chunk)};
      stage.ask(chunks, this->parts, list, count, has_row ? terms.row : -1, place);
    }
    return count;
  }

  __device__ static void await_rows(int count, Stage& stage) {
    if constexpr (kAligned) stage.await(count);
  }

  /// The rows of this rank: their rounded sum, or the one that there is.
  __device__ void add_rows(int chunk, int count, Stage& stage, ChunkType& own) const {
    await_rows(count, stage);
    if constexpr (kTokenRows) {
      if (count == 0) return;
      if constexpr (kAligned) {
        stage.read(0, this->parts, own);
      } else {
        this->load_own(list[0].row, chunk, own);
      }
      return;
    }
    ChunkSums<Format, ChunkType> sums;
    sums.clear();
    const int num_staged = kAligned ? min(count, Stage::kRows) : 0;
#pragma unroll 1
    for (int i = 0; i < num_staged; ++i) {
      ChunkType row;
      stage.read(i, this->parts, row);
      sums.add(row, list[i].weight);
    }
#pragma unroll 1
    for (int i = num_staged; i < count; ++i) {
      const RowTerm other = list[i];
      ChunkType row;
      this->load_own(other.row, chunk, row);
      sums.add(row, other.weight);
    }
    sums.pack(own);
  }

  /// Sends what has been added, or stores it with what others send. False when a wait was given up.
  __device__ bool finish(const Unit& unit, const Terms& terms, int count, const ChunkType& own) const {
    if (unit.sends) {
      if (count > 0) this->send_chunk(unit.source, unit.stage, unit.chunk, own);
      return true;
    }
    ChunkSums<Format, ChunkType> sums;
    if (!sum_ranks(unit, terms, own, sums)) return false;
    ChunkType out;
    sums.pack(out);
    this->store_sum(unit.idx, unit.chunk, out);
    return true;
  }

 private:
  [[nodiscard]] __device__ Terms ask_token(int token) const {
    const HandleArrays& handle = args.handle;
    Terms terms;
    if (!kTokenRows && lane_id() < handle.top_k) {
      const std::int64_t entry = std::int64_t{token} * handle.top_k + lane_id();
      terms.expert = handle.expert_ids[entry];
      terms.row = handle.dst_row[entry];
      terms.row_weight = handle.weights[entry];
    }
    if (lane_id() < handle.sends_per_token) {
      const std::int64_t place = std::int64_t{token} * handle.sends_per_token + lane_id();
      const SendPlace send = handle.sends[place];
      terms.dst_rank = send.dst_rank;
      if (kTokenRows) terms.row = send.row;
      terms.stage = send.stage;
      terms.weight = handle.send_weights[place];
    }
    return terms;
  }
  /// The same of a row that another rank's token has here.
  [[nodiscard]] __device__ Terms ask_pair(std::int32_t pair) const {
    Terms terms;
    if (kTokenRows) {
      if (lane_id() == 0) terms.row = pair;
    } else if (lane_id() < args.handle.top_k) {
      const std::int32_t* record = this->record_of(pair);
      terms.row = record[2 + lane_id()];
      terms.row_weight = __int_as_float(record[2 + args.handle.top_k + lane_id()]);
    }
    return terms;
  }

  /// Of a token's terms those of other ranks' experts are no rows of this one.
  [[nodiscard]] __device__ bool is_own(const Terms& terms) const {
    if (sources.is_void != 0) return false;
    if (kTokenRows) return terms.dst_rank == group().rank;
    const ExpertPartition partition = args.layout.partition();
    const std::int32_t first = partition.first_expert(group().rank);
    return terms.expert >= first && terms.expert < first + partition.num_local_experts(group().rank);
  }

  /// One row per rank; false when a wait was given up.
  __device__ bool sum_ranks(const Unit& unit, const Terms& terms, const ChunkType& own,
                            ChunkSums<Format, ChunkType>& sums) const {
    const bool goes = sources.is_void == 0 && terms.dst_rank >= 0;
    const unsigned mask = __ballot_sync(kFullWarp, goes);
    const unsigned mine = __ballot_sync(kFullWarp, goes && terms.dst_rank == group().rank);
    // Weights of expert rows are in what their ranks have summed.
    const float weight = args.weighted && kTokenRows ? terms.weight : 1.0F;
    sums.clear();
#pragma unroll 1
    for (unsigned left = mask; left != 0; left &= left - 1) {
      const int lane = __ffs(static_cast<int>(left)) - 1;
      ChunkType data = own;
      if ((mine >> lane & 1U) == 0) {
        const int rank = __shfl_sync(kFullWarp, terms.dst_rank, lane);
        const std::int32_t stage = __shfl_sync(kFullWarp, terms.stage, lane);
        if (!this->await_chunk(rank, stage, unit.chunk, data)) return false;
        data.clear_behind(this->parts, this->bytes_of(unit.chunk));
      }
      if constexpr (kTokenRows) {
        sums.add(data, __shfl_sync(kFullWarp, weight, lane));
      } else {
        sums.add(data);
      }
    }
    return true;
  }
};

/// All units of a warp, `unit` (of which it is known already what the handle says) and those of the cursor.
template <class ChunkType, class Summer>
__device__ void run_units(const Summer& summer, Cursor cursor, Unit unit, Terms terms, typename Summer::Stage& stage) {
  int count = summer.ask_rows(unit, terms, stage);
#pragma unroll 1
  while (true) {
    const bool more = cursor.has_more();
    Unit next;
    Terms next_terms;
    if (more) {
      next = summer.next(cursor, summer.sources);
      next_terms = summer.ask(next);
    }
    ChunkType own;
    if (unit.is_there) summer.add_rows(unit.chunk, count, stage, own);
    const int next_count = summer.ask_rows(next, next_terms, stage);
    if (unit.is_there && !summer.finish(unit, terms, count, own)) {
      summer.await_rows(next_count, stage);  // nothing may be under way when the block ends
      break;
    }
    if (!more) break;
    unit = next;
    terms = next_terms;
    count = next_count;
  }
}

template <class Format, class ChunkType, bool kAligned, bool kTokenRows>
__global__ void __launch_bounds__(kLineThreads, 1) combine_ranks_kernel(const __grid_constant__ LineCombineArgs args) {
  extern __shared__ __align__(16) std::byte staged[];
  __shared__ SourceRows sources;
  __shared__ RowTerm term_lists[kLineWarps][kWarpSize];
  __shared__ std::uint64_t arrived[kLineWarps];
  CallContext call;
  const auto warp = static_cast<int>(threadIdx.x) / kWarpSize;
  using Summer = RankSummer<Format, ChunkType, kAligned, kTokenRows>;
  const Summer summer{{args.sum, args.lines, call, sources}, TermList(term_lists[warp])};
  typename Summer::Stage stage(staged + warp * kStageBytes, arrived[warp]);
  Cursor cursor{};
  Unit first;
  Terms terms;
  bool sends = false;
  const auto ask = [&](bool has_sends, bool has_receives) {
    sends = has_sends;
    const int num_receives = static_cast<int>(args.sum.handle.num_tokens) * args.lines.combine_chunks;
    // Warps that have nothing to send begin to receive.
    cursor = {line_worker(static_cast<int>(gridDim.x), warp, kLineWarps),
              line_worker(static_cast<int>(gridDim.x), kLineWarps - 1 - warp, kLineWarps), has_sends ? INT_MAX : 0,
              has_receives ? num_receives : 0};
    first = summer.next(cursor, *args.sum.handle.totals);
    terms = summer.ask(first);
  };
  const auto move = [&] {
    if (sends) cursor.num_sends = summer.num_send_units();
    run_units<ChunkType>(summer, cursor, first, terms, stage);
  };
  run_line_sum(args, call, sources, ask, move);
}

using RankKernel = void (*)(LineCombineArgs);

template <class Format, class ChunkType>
RankKernel combine_aligned(bool token_rows) {
  return token_rows ? combine_ranks_kernel<Format, ChunkType, true, true>
                    : combine_ranks_kernel<Format, ChunkType, true, false>;
}

RankKernel combine_ranks(DType dtype, bool wide, bool aligned, bool token_rows) {
  return with_format(dtype, [&](auto format) -> RankKernel {
    using Format = decltype(format);
    // Rows that are not aligned are read byte by byte: nothing is gained by wider chunks.
    if (!aligned)
      return token_rows ? combine_ranks_kernel<Format, Chunk, false, true>
                        : combine_ranks_kernel<Format, Chunk, false, false>;
    return wide ? combine_aligned<Format, WideChunk>(token_rows) : combine_aligned<Format, Chunk>(token_rows);
  });
}

}  // namespace

const void* combine_ranks_address(DType dtype, bool wide, bool aligned, bool token_rows) noexcept {
  return reinterpret_cast<const void*>(combine_ranks(dtype, wide, aligned, token_rows));
}

cudaError_t launch_combine_ranks(const LineCombineArgs& args, bool aligned, cudaStream_t stream) {
  LineCombineArgs chosen = args;
  const bool wide = args.wide && aligned;
  if (wide) chosen.lines.widen_combine();
  return start_kernel(combine_ranks(args.sum.dtype, wide, aligned, args.sum.layout.token_major()),
                      {args.sum.tuning.num_blocks, kLineThreads, aligned ? kStagedBytes : 0},
                      args.sum.group.early_start, chosen, stream);
}

}  // namespace epistle::cuda
