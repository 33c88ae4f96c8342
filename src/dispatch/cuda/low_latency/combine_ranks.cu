// Combine by lines where the ranks of the experts sum first: each sends one row per (token, rank) to a fixed place at
// the token's rank, whatever the others do; that rank adds as the lines arrive, in the documented order.
//
// A warp moves one chunk of one token at a time, and waits for memory all the time but for what it has asked for
// before: while it adds the rows of one unit, those of the next are on their way to shared memory, and what says which
// rows the unit behind that has is on its way to registers.
#include <climits>

#include "dispatch/cuda/device/start_kernel.cuh"
#include "dispatch/cuda/low_latency/line_sums.cuh"

namespace epistle::cuda {
namespace {

/// Rows of one unit that are on their way at once; of more (a token with so many experts on one rank) the others are
/// read when their turn comes.
constexpr int kStagedRows = 6;
constexpr int kStages = 2;

/// Rows of units in shared memory: a warp's stages, each [rows][vectors of a chunk][lanes] of 16 bytes. A lane reads
/// what it has copied itself.
constexpr int kStagedVectorBytes = kWarpSize * kVectorBytes;
constexpr int kStagedRowBytes = Chunk::kVectors * kStagedVectorBytes;
constexpr int kStageBytes = kStagedRows * kStagedRowBytes;
constexpr std::int64_t kStagedBytes = std::int64_t{kStageBytes} * kStages * kLineWarps;

/// 16 bytes, or 8, or nothing, on their way to shared memory; without branches, each of which takes longer.
__device__ void copy_ahead(int to, const std::byte* from, bool whole, bool half) {
  asm volatile(
      "{\n.reg .pred p, q;\n"
      "setp.ne.u32 p, %2, 0;\n"
      "setp.ne.u32 q, %3, 0;\n"
      "@p cp.async.cg.shared.global [%0], [%1], 16;\n"
      "@q cp.async.ca.shared.global [%0], [%1], 8;\n}\n" ::"r"(to),
      "l"(from), "r"(static_cast<std::uint32_t>(whole)), "r"(static_cast<std::uint32_t>(half))
      : "memory");
}
__device__ uint4 load_staged(int from) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(from)
               : "memory");
  return v;
}
__device__ void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// All but the last `kLeft` groups of this thread's copies are there.
template <int kLeft>
__device__ void await_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

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

/// A row of another rank, at the first look.
struct Theirs {
  Chunk data;
  int lane = -1;  ///< of its rank among the terms; -1: there is none
};

/// The units of a warp in their order.
struct Cursor {
  Worker sending;
  Worker receiving;
  int num_sends;  ///< the first is looked at before they are counted
  int num_receives;

  [[nodiscard]] __device__ bool has_more() const { return sending.idx < num_sends || receiving.idx < num_receives; }
};

template <class Format, bool kAligned, bool kTokenRows>
struct RankSummer : LineSums<kAligned> {
  using Sums = LineSums<kAligned>;
  using Sums::args;
  using Sums::call;
  using Sums::group;
  using Sums::lines;
  using Sums::sources;

  int stages;  ///< address in shared memory of this lane's part of the warp's first stage

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

  /// Asks for what is known of a token of this rank.
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
  [[nodiscard]] __device__ Terms ask(const Unit& unit) const {
    if (!unit.is_there) return {};
    return unit.sends ? ask_pair(unit.idx) : ask_token(unit.idx);
  }

  /// Sends for the rows of a unit, and looks at what another rank has sent for it. `terms`: afterwards only rows that
  /// are here.
  __device__ void stage(const Unit& unit, Terms& terms, int rows, Theirs& theirs) const {
    theirs.lane = -1;
    if (unit.is_there) {
      if (!unit.sends) {
        keep_own(terms);
        look(unit, terms, theirs);
      }
      if constexpr (kAligned) copy_rows(unit, terms, rows);
    }
    if constexpr (kAligned) end_copies();
  }

  /// Adds and sends, or stores. False when a wait was given up.
  __device__ bool finish(const Unit& unit, const Terms& terms, int rows, Theirs& theirs) const {
    const unsigned mask = __ballot_sync(kFullWarp, terms.row >= 0);
    Chunk own;
    if (kTokenRows) {
      if (mask != 0) read_row(terms, __ffs(static_cast<int>(mask)) - 1, 0, unit.chunk, rows, own);
    } else {
      sum_rows(terms, mask, unit.chunk, rows, own);
    }
    if (unit.sends) {
      if (mask != 0) this->send_chunk(unit.source, unit.stage, unit.chunk, own);
      return true;
    }
    ChunkSums<Format> sums;
    if (!sum_ranks(unit, terms, own, theirs, sums)) return false;
    Chunk out;
    sums.pack(out);
    this->store_sum(unit.idx, unit.chunk, out);
    return true;
  }

 private:
  /// Of a token's terms those of other ranks' experts are no rows of this one.
  __device__ void keep_own(Terms& terms) const {
    if (sources.is_void != 0) terms.dst_rank = -1;
    bool own = terms.dst_rank == group().rank;
    if (!kTokenRows) {
      const ExpertPartition partition = args.layout.partition();
      const std::int32_t first = partition.first_expert(group().rank);
      own = sources.is_void == 0 && terms.expert >= first &&
            terms.expert < first + partition.num_local_experts(group().rank);
    }
    if (!own) terms.row = -1;
  }

  __device__ void look(const Unit& unit, const Terms& terms, Theirs& theirs) const {
    const unsigned others = __ballot_sync(kFullWarp, terms.dst_rank >= 0 && terms.dst_rank != group().rank);
    if (others == 0) return;
    theirs.lane = __ffs(static_cast<int>(others)) - 1;
    const std::int32_t stage = __shfl_sync(kFullWarp, terms.stage, theirs.lane);
    theirs.data.ask(this->parts, this->lines_at(group().rank, stage, unit.chunk),
                    lines_in_chunk(lines.combine_lines, unit.chunk));
  }

  __device__ void copy_rows(const Unit& unit, const Terms& terms, int rows) const {
    const int num_bytes = this->bytes_of(unit.chunk);
    const bool first_in = this->parts.is_in(0, num_bytes);
    const bool second_in = this->parts.is_in(1, num_bytes);
    const bool has_flag = this->parts.has_flag;
    static_assert(Chunk::kVectors == 2);
    const std::byte* chunk = this->own_chunk(0, unit.chunk) + this->parts.first;
    const auto row_bytes = static_cast<std::uint32_t>(this->row_bytes());
    int to = rows;
    int count = 0;
#pragma unroll 1
    for (unsigned left = __ballot_sync(kFullWarp, terms.row >= 0); left != 0 && count < kStagedRows; ++count) {
      const auto row = static_cast<std::uint32_t>(__shfl_sync(kFullWarp, terms.row, __ffs(static_cast<int>(left)) - 1));
      const std::byte* from = chunk + std::uint64_t{row} * row_bytes;
      copy_ahead(to, from, first_in && !has_flag, first_in && has_flag);
      copy_ahead(to + kStagedVectorBytes, from + Chunk::Parts::kStep, second_in && !has_flag, second_in && has_flag);
      to += kStagedRowBytes;
      left &= left - 1;
    }
  }

  /// The row of a lane, the `i`-th of its unit. What a lane holds behind the chunk's bytes means nothing, as nobody
  /// stores it.
  __device__ void read_row(const Terms& terms, int lane, int i, int chunk, int rows, Chunk& data) const {
    if constexpr (kAligned) {
      if (i < kStagedRows) {
#pragma unroll
        for (int v = 0; v < Chunk::kVectors; ++v) {
          data.v[v] = load_staged(rows + i * kStagedRowBytes + v * kStagedVectorBytes);
        }
        return;
      }
    }
    this->load_own(__shfl_sync(kFullWarp, terms.row, lane), chunk, data);
  }

  /// Rounded sum of the rows of the lanes in `mask`, in their order.
  __device__ void sum_rows(const Terms& terms, unsigned mask, int chunk, int rows, Chunk& out) const {
    ChunkSums<Format> sums;
    sums.clear();
    const float row_weight = args.weighted ? terms.row_weight : 1.0F;
    int i = 0;
#pragma unroll 1
    for (unsigned left = mask; left != 0; left &= left - 1, ++i) {
      const int lane = __ffs(static_cast<int>(left)) - 1;
      Chunk row;
      read_row(terms, lane, i, chunk, rows, row);
      sums.add(row, __shfl_sync(kFullWarp, row_weight, lane));
    }
    sums.pack(out);
  }

  /// One row per rank; false when a wait was given up.
  __device__ bool sum_ranks(const Unit& unit, const Terms& terms, const Chunk& own, Theirs& theirs,
                            ChunkSums<Format>& sums) const {
    const unsigned mask = __ballot_sync(kFullWarp, terms.dst_rank >= 0);
    const unsigned mine = __ballot_sync(kFullWarp, terms.dst_rank == group().rank);
    const float weight = args.weighted && kTokenRows ? terms.weight : 1.0F;
    const int num_lines = lines_in_chunk(lines.combine_lines, unit.chunk);
    const bool first_there =
        theirs.lane >= 0 &&
        __all_sync(kFullWarp, theirs.data.is_there(this->parts, num_lines, line_flag(call.epoch))) != 0;
    sums.clear();
#pragma unroll 1
    for (unsigned left = mask; left != 0; left &= left - 1) {
      const int lane = __ffs(static_cast<int>(left)) - 1;
      Chunk data = own;
      if ((mine >> lane & 1U) == 0) {
        data = theirs.data;
        if (lane != theirs.lane || !first_there) {
          const int rank = __shfl_sync(kFullWarp, terms.dst_rank, lane);
          const std::int32_t stage = __shfl_sync(kFullWarp, terms.stage, lane);
          if (!this->await_chunk(rank, stage, unit.chunk, data)) return false;
        }
        data.clear_behind(this->parts, this->bytes_of(unit.chunk));
      }
      sums.add(data, __shfl_sync(kFullWarp, weight, lane));
    }
    return true;
  }
};

/// A unit on its way through a warp.
struct Flight {
  Unit unit;
  Terms terms;
  Theirs theirs;
};

/// All units of a warp, `first` (of which it is known already what the handle says) and those of the cursor. In every
/// round one is asked for, one staged and one finished.
template <class Summer>
__device__ void run_units(const Summer& summer, Cursor cursor, const Unit& first, const Terms& first_terms) {
  Flight asked{first, first_terms, {}};
  Flight staged;
  int place = 0;
#pragma unroll 1
  while (true) {
    summer.stage(asked.unit, asked.terms, summer.stages + place * kStageBytes, asked.theirs);
    Flight coming;
    const bool more = cursor.has_more();
    if (more) {
      coming.unit = summer.next(cursor, summer.sources);
      coming.terms = summer.ask(coming.unit);
    }
    place ^= 1;
    if (staged.unit.is_there) {
      await_copies<1>();
      if (!summer.finish(staged.unit, staged.terms, summer.stages + place * kStageBytes, staged.theirs)) break;
    }
    if (!more && !asked.unit.is_there) break;
    staged = asked;
    asked = coming;
  }
  await_copies<0>();
}

template <class Format, bool kAligned, bool kTokenRows>
__global__ void __launch_bounds__(kLineThreads, 1) combine_ranks_kernel(const __grid_constant__ LineCombineArgs args) {
  extern __shared__ __align__(16) std::byte staged[];
  __shared__ SourceRows sources;
  CallContext call;
  const auto warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int stages = kept(static_cast<int>(__cvta_generic_to_shared(staged)) + warp * kStages * kStageBytes +
                          lane_id() * kVectorBytes);
  const RankSummer<Format, kAligned, kTokenRows> summer{{args.sum, args.lines, call, sources}, stages};
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
    run_units(summer, cursor, first, terms);
  };
  run_line_sum(args, call, sources, ask, move);
}

using RankKernel = void (*)(LineCombineArgs);

RankKernel combine_ranks(DType dtype, bool aligned, bool token_rows) {
  return with_format(dtype, [&](auto format) -> RankKernel {
    using Format = decltype(format);
    if (token_rows)
      return aligned ? combine_ranks_kernel<Format, true, true> : combine_ranks_kernel<Format, false, true>;
    return aligned ? combine_ranks_kernel<Format, true, false> : combine_ranks_kernel<Format, false, false>;
  });
}

}  // namespace

const void* combine_ranks_address(DType dtype, bool aligned, bool token_rows) noexcept {
  return reinterpret_cast<const void*>(combine_ranks(dtype, aligned, token_rows));
}

cudaError_t launch_combine_ranks(const LineCombineArgs& args, bool aligned, cudaStream_t stream) {
  return start_kernel(combine_ranks(args.sum.dtype, aligned, args.sum.layout.token_major()),
                      {args.sum.tuning.num_blocks, kLineThreads, aligned ? kStagedBytes : 0},
                      args.sum.group.early_start, args, stream);
}

}  // namespace epistle::cuda
