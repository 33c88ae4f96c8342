// Shared memory of a dispatch by lines: the routing of this rank, and what follows from the counts of all.
#pragma once

#include <cstdint>

#include "dispatch/cuda/device/quantise.cuh"
#include "dispatch/cuda/low_latency/lines.cuh"
#include "dispatch/cuda/low_latency/routing_bits.cuh"
#include "dispatch/cuda/prepare/prepare_tables.cuh"

namespace epistle::cuda {

static_assert(kQuantisedElements == BlockChunk::kBytes, "a warp quantises what it sends");

/// A warp's own: a chunk on its way through the lanes, and a header.
struct WarpScratch {
  union {
    QuantisedPart quantised;
    alignas(16) std::byte chunk[Chunk::kBytes];
  };
  std::uint32_t header[(kHeaderStart + 3 * kMaxLineTopK + 31) / 32 * 32];
};

struct LineTables {
  RoutingBits routing;
  Tables all;                ///< of these: total, group, tokens, out_rows, first and routed
  std::int32_t* begin;       ///< [ranks][local experts] first output row of a source's rows of an expert here
  std::int32_t* pair_begin;  ///< [ranks + 1]
  WarpScratch* scratch;      ///< [kLineWarps]
  int num_local;             ///< experts of this rank
};

struct LineShape {
  int ranks;
  int experts;
  int top_k;
  int max_local;
  std::int64_t max_tokens;
};

/// Lays the tables out from `memory` on; returns the bytes they take.
__host__ __device__ inline std::int64_t carve(std::byte* memory, const LineShape& shape, LineTables& t) {
  std::int64_t used = 0;
  const auto take = [&](auto*& part, std::int64_t count) {
    part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(memory + used);
    used += round16(count * static_cast<std::int64_t>(sizeof(*part)));
  };
  const std::int64_t entries = shape.max_tokens * shape.top_k;
  t.routing.num_columns = shape.ranks + shape.experts;
  t.routing.stride = line_words(shape.max_tokens);
  take(t.scratch, kLineWarps);
  take(t.routing.bits, std::int64_t{t.routing.num_columns} * t.routing.stride);
  take(t.routing.entries, entries);
  take(t.routing.ranks, entries);
  take(t.routing.rank_of, shape.experts);
  take(t.all.total, shape.experts);
  take(t.all.group, shape.experts);
  take(t.all.tokens, std::int64_t{shape.ranks} * shape.ranks);
  take(t.all.out_rows, shape.ranks);
  take(t.all.first, shape.ranks);
  take(t.all.routed, 1);
  take(t.begin, std::int64_t{shape.ranks} * shape.max_local);
  take(t.pair_begin, shape.ranks + 1);
  return used;
}

/// The first entries of the routing, on their way while the block sets itself up.
struct EarlyRouting {
  static constexpr int kPerThread = 2;
  std::int32_t routed;
  std::int64_t ids[kPerThread];

  __device__ void load(const PrepareArgs& args) {
    const auto num_tokens = static_cast<std::int32_t>(args.handle.num_tokens);
    const int top_k = args.handle.top_k;
    routed = args.num_tokens != nullptr ? __ldcg(args.num_tokens) : num_tokens;
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      const int i = static_cast<int>(threadIdx.x) + j * kLineThreads;
      const auto token = static_cast<int>(static_cast<unsigned>(i) / static_cast<unsigned>(top_k));
      ids[j] = token < num_tokens ? read_id(args, token * args.id_stride + (i - token * top_k)) : kNoExpert;
    }
    routed = max(0, min(routed, num_tokens));
  }
};

/// Reads the whole routing and sets its bits, which must be clear; true in a thread that has seen a bad id.
__device__ inline bool read_routing(const PrepareArgs& args, LineTables& t, const EarlyRouting& early) {
  const int ranks = args.group.num_ranks;
  const int experts = args.group.control.num_experts;
  const int top_k = args.handle.top_k;
  const int count = static_cast<int>(args.handle.num_tokens) * top_k;
  bool bad = false;
  int round = 0;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kLineThreads, ++round) {
    const auto token = static_cast<int>(static_cast<unsigned>(i) / static_cast<unsigned>(top_k));
    std::int64_t id = kNoExpert;
    if (token < early.routed) {
      id = round == 0   ? early.ids[0]
           : round == 1 ? early.ids[1]
                        : read_id(args, token * args.id_stride + (i - token * top_k));
    }
    bool is_bad = id < kNoExpert || id >= experts;
    if (is_bad) id = kNoExpert;
    t.routing.entries[i] = static_cast<std::int32_t>(id);
    if (id != kNoExpert) {
      const int rank = t.routing.rank_of[id];
      t.routing.ranks[i] = static_cast<std::uint8_t>(rank);
      const std::uint32_t bit = 1U << (token & 31);
      const int column = ranks + static_cast<int>(id);
      is_bad = (atomicOr(&t.routing.bits[column * t.routing.stride + token / 32], bit) & bit) != 0;
      atomicOr(&t.routing.bits[rank * t.routing.stride + token / 32], bit);
    }
    if (!is_bad) continue;
    bad = true;
    if (blockIdx.x == gridDim.x - 1) {
      atomicMax(&args.group.local->first_bad_entry, ~static_cast<unsigned long long>(i));
    }
  }
  return bad;
}

/// Where the counts of a source lie at a rank.
__device__ inline std::uint64_t* line_counts(const DeviceGroup& group, const LinePlan& lines, std::uint32_t epoch,
                                             int rank, int source) {
  return reinterpret_cast<std::uint64_t*>(group.section(rank, BufferSection::kDispatchLines) +
                                          lines.counts_offset(epoch, source));
}

/// Few ranks: the last block tells them all counts alone, and the others have their hands free for rows.
inline constexpr int kFewRanks = 8;

/// Tells every rank what this one has counted; each of the blocks that do so its share of the columns.
__device__ inline void tell_line_counts(const CallContext& call, const LinePlan& lines, const LineTables& t,
                                        bool refused) {
  const DeviceGroup& group = *call.group;
  const auto num_blocks = static_cast<int>(gridDim.x);
  const bool alone = group.num_ranks <= kFewRanks;
  const int share = alone ? num_blocks - 1 - static_cast<int>(blockIdx.x) : static_cast<int>(blockIdx.x);
  const int per_block = alone ? lines.num_columns : (lines.num_columns + num_blocks - 1) / num_blocks;
  const int begin = share * per_block;
  const int end = min(begin + per_block, lines.num_columns);
  const std::uint64_t tag = std::uint64_t{call.epoch} << 32;
#pragma unroll 1
  for (int column = begin + static_cast<int>(threadIdx.x); column < end; column += kLineThreads) {
    const bool is_status = column == t.routing.num_columns;
    const int value = is_status ? (refused ? 1 : 0) : refused ? 0 : t.routing.count(column);
#pragma unroll 1
    for (int peer = 0; peer < group.num_ranks; ++peer) {
      if (peer == group.rank) continue;
      store_relaxed(line_counts(group, lines, call.epoch, peer, group.rank) + column,
                    tag | static_cast<std::uint32_t>(value));
    }
  }
}

/// A count of another rank, when it is there. Nothing is newer than the call, so what is not of this call is older,
/// however often epochs have gone round.
__device__ inline std::int32_t await_line_count(const CallContext& call, int source, const std::uint64_t* count,
                                                bool& ok) {
  std::uint64_t start_ns = 0;
#pragma unroll 1
  for (std::uint32_t polls = 0;; ++polls) {
    const std::uint64_t word = load_relaxed(count);
    if (epoch_of(word) == call.epoch) return static_cast<std::int32_t>(word);
    if ((polls & 0x3fU) != 0x3fU) continue;
    if (start_ns == 0) start_ns = now_ns();
    if (gives_up(call, source, start_ns, polls + 1)) {
      ok = false;
      return 0;
    }
  }
}

/// What a block knows of the other ranks' routing.
struct LineCounts {
  bool there;         ///< no wait was given up, and, where asked for, all ranks are in this call
  int refusing_rank;  ///< -1: none refused its input
};

/// Counts of all ranks, as far as this one needs them to place what it receives; with `books` all of them, which the
/// handle keeps, and the announcements. The same in all threads of the block.
__device__ inline LineCounts await_tables(const PrepareArgs& args, const CallContext& call, const LinePlan& lines,
                                          LineTables& t, bool refused, bool books) {
  __shared__ int refusing_rank;
  const DeviceGroup& group = args.group;
  const int ranks = group.num_ranks;
  const int first_expert = expert_column(ranks, t.all.first[group.rank]);
  const int end_expert = first_expert + t.num_local;
  if (threadIdx.x == 0) refusing_rank = kMaxRanks;
  __syncthreads();
  bool ok = true;
#pragma unroll 1
  for (int source = 0; source < ranks; ++source) {
    const std::uint64_t* counts = line_counts(group, lines, call.epoch, group.rank, source);
#pragma unroll 1
    for (int column = static_cast<int>(threadIdx.x); column < lines.num_columns; column += kLineThreads) {
      const bool is_status = column == t.routing.num_columns;
      const bool is_local = column >= first_expert && column < end_expert;
      if (!books && !is_status && !is_local && column >= ranks) continue;
      std::int32_t count = 0;
      if (source != group.rank) {
        count = await_line_count(call, source, counts + column, ok);
      } else if (is_status) {
        count = refused ? 1 : 0;
      } else if (!refused) {
        count = t.routing.count(column);
      }
      if (is_status) {
        if (count != 0) atomicMin(&refusing_rank, source);
        continue;
      }
      if (column < ranks) t.all.tokens[source * ranks + column] = count;
      if (is_local) t.begin[source * t.num_local + column - first_expert] = count;
      if (books) args.handle.counts[source * t.routing.num_columns + column] = count;
    }
  }
  if (books && static_cast<int>(threadIdx.x) < ranks) {
    ok = starts_same_call(call, static_cast<int>(threadIdx.x)) && ok;
  }
  const bool there = __syncthreads_and(ok) != 0;
  return {there, there && refusing_rank < kMaxRanks ? refusing_rank : -1};
}

/// Where everything begins that this rank receives. `nothing`: whatever the counts say.
__device__ inline void place_sources(const PrepareArgs& args, LineTables& t, bool nothing) {
  const DispatchLayout& layout = args.layout;
  const int ranks = args.group.num_ranks;
  const int rank = args.group.rank;
  const int first_expert = t.all.first[rank];
  const int thread = static_cast<int>(threadIdx.x);
  if (nothing) {
    for (int i = thread; i < ranks * ranks; i += kLineThreads) t.all.tokens[i] = 0;
    for (int i = thread; i < ranks * t.num_local; i += kLineThreads) t.begin[i] = 0;
    __syncthreads();
  }
  const bool blocks = layout.params().layout == OutputLayout::kExpertBlocks;
  // Rows of an expert begin behind those of the experts before it, which is known at once of blocks.
  const auto capacity = static_cast<std::int32_t>(layout.params().capacity_rows);
#pragma unroll 1
  for (int e = thread; e < t.num_local; e += kLineThreads) {
    std::int32_t row = blocks ? e * capacity : 0;
    if (blocks) t.all.group[first_expert + e] = row;
    std::int32_t total = 0;
#pragma unroll 1
    for (int s = 0; s < ranks; ++s) {
      std::int32_t& begin = t.begin[s * t.num_local + e];
      const std::int32_t count = begin;
      begin = row + total;
      total += count;
    }
    t.all.total[first_expert + e] = total;
  }
  if (thread <= ranks) {
    std::int32_t begin = 0;
#pragma unroll 1
    for (int s = 0; s < thread; ++s) begin += t.all.tokens[s * ranks + rank];
    t.pair_begin[thread] = begin;
  }
  if (thread < ranks) {
    const std::int32_t experts = thread + 1 < ranks ? t.all.first[thread + 1] - t.all.first[thread]
                                                    : layout.params().num_experts - t.all.first[thread];
    t.all.out_rows[thread] = capacity * (blocks ? experts : 1);
  }
  __syncthreads();
  if (layout.params().layout != OutputLayout::kExpertMajor) return;
  if (thread < kWarpSize) static_cast<void>(place_groups(layout, t.all, rank));
  __syncthreads();
#pragma unroll 1
  for (int i = thread; i < ranks * t.num_local; i += kLineThreads) {
    const auto source = static_cast<int>(static_cast<unsigned>(i) / static_cast<unsigned>(t.num_local));
    t.begin[i] += t.all.group[first_expert + i - source * t.num_local];
  }
  __syncthreads();
}

}  // namespace epistle::cuda
