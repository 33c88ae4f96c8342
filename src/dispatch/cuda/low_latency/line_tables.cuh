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
  uint4 head[kWarpSize];  ///< a received header's lines
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
  // What is routed by lines fits into 32 bits.
  std::uint32_t used = 0;
  const auto take = [&](auto*& part, std::uint32_t count) {
    part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(memory + used);
    used += (count * static_cast<std::uint32_t>(sizeof(*part)) + 15U) & ~15U;
  };
  const auto ranks = static_cast<std::uint32_t>(shape.ranks);
  const auto experts = static_cast<std::uint32_t>(shape.experts);
  const std::uint32_t entries = static_cast<std::uint32_t>(shape.max_tokens) * static_cast<std::uint32_t>(shape.top_k);
  t.routing.num_columns = shape.ranks + shape.experts;
  t.routing.stride = line_words(shape.max_tokens);
  take(t.scratch, kLineWarps);
  take(t.routing.bits, (ranks + experts) * static_cast<std::uint32_t>(t.routing.stride));
  take(t.routing.entries, entries);
  take(t.routing.ranks, entries);
  take(t.all.total, experts);
  take(t.all.group, experts);
  take(t.all.tokens, ranks * ranks);
  take(t.all.out_rows, ranks);
  take(t.all.first, ranks);
  take(t.all.routed, 1);
  take(t.begin, ranks * static_cast<std::uint32_t>(shape.max_local));
  take(t.pair_begin, ranks + 1);
  return used;
}

/// The tables of a block of dispatch. What is not inlined lays them out anew rather than being given them: they stay in
/// registers.
__device__ inline LineTables tables_of(const PrepareArgs& args, std::byte* memory) {
  const ExpertPartition partition = args.layout.partition();
  LineTables t;
  carve(memory,
        {args.group.num_ranks, partition.num_experts, args.handle.top_k, partition.max_local_experts(),
         args.group.control.max_tokens},
        t);
  t.num_local = partition.num_local_experts(args.group.rank);
  return t;
}

/// The first entries of the routing, on their way while the block sets itself up: as they come, so that nothing waits
/// for them before they are used.
struct EarlyRouting {
  static constexpr int kPerThread = 4;
  std::int32_t routed;
  std::uint64_t ids[kPerThread];

  __device__ void load(const PrepareArgs& args, const LinePlan& lines, const Team& team) {
    const auto num_tokens = static_cast<std::int32_t>(args.handle.num_tokens);
    routed = num_tokens;
    if (args.num_tokens != nullptr) routed = __ldcg(args.num_tokens);
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      const int i = team.thread + j * team.count;
      const int token = lines.by_top_k.quotient(i);
      const std::int64_t offset = token * args.id_stride + (i - token * lines.top_k);
      ids[j] = 0;
      if (token >= num_tokens) break;
      if (args.ids_are_64_bit) {
        ids[j] = static_cast<const std::uint64_t*>(args.expert_ids)[offset];
      } else {
        ids[j] = static_cast<const std::uint32_t*>(args.expert_ids)[offset];
      }
    }
  }
  [[nodiscard]] __device__ std::int32_t num_routed(const PrepareArgs& args) const {
    return max(0, min(routed, static_cast<std::int32_t>(args.handle.num_tokens)));
  }
  /// Of the `round`-th entry of the thread; takes the next one to its place.
  [[nodiscard]] __device__ std::int64_t take(const PrepareArgs& args) {
    const std::uint64_t id = ids[0];
#pragma unroll
    for (int j = 0; j + 1 < kPerThread; ++j) ids[j] = ids[j + 1];
    return args.ids_are_64_bit ? static_cast<std::int64_t>(id)
                               : static_cast<std::int32_t>(static_cast<std::uint32_t>(id));
  }
};

/// Reads the whole routing and sets its bits, which must be clear; true in a thread that has seen a bad id. kPlaced:
/// ids name experts whose slots are to be chosen.
template <bool kPlaced>
__device__ inline bool read_routing(const PrepareArgs& args, const LinePlan& lines, LineTables& t, EarlyRouting& early,
                                    const Team& team) {
  const int ranks = args.group.num_ranks;
  SlotChooser chooser;
  if constexpr (kPlaced) chooser = slot_chooser(args);
  const int count = static_cast<int>(args.handle.num_tokens) * lines.top_k;
  const std::int32_t num_routed = early.num_routed(args);
  bool bad = false;
  int left = EarlyRouting::kPerThread;
#pragma unroll 1
  for (int i = team.thread; i < count; i += team.count, --left) {
    const int token = lines.by_top_k.quotient(i);
    std::int64_t id = left > 0 ? early.take(args) : kNoExpert;
    if (token >= num_routed) {
      id = kNoExpert;
    } else if (left <= 0) {
      id = read_id(args, token * args.id_stride + (i - token * lines.top_k));
    }
    bool is_bad = id < kNoExpert || id >= args.num_experts;
    if (is_bad) id = kNoExpert;
    if constexpr (kPlaced) {
      if (id != kNoExpert) id = chooser.slot_of(static_cast<std::int32_t>(id), token);
    }
    t.routing.entries[i] = static_cast<std::int32_t>(id);
    if (id != kNoExpert) {
      const int rank = lines.ranks.rank_of(static_cast<std::int32_t>(id));
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
                                        bool refused, const Team& team) {
  const DeviceGroup& group = *call.group;
  const auto num_blocks = static_cast<int>(gridDim.x);
  const bool alone = group.num_ranks <= kFewRanks;
  const int share = alone ? num_blocks - 1 - static_cast<int>(blockIdx.x) : static_cast<int>(blockIdx.x);
  if (alone && share > 0) return;
  const int per_block = alone ? lines.num_columns : (lines.num_columns + num_blocks - 1) / num_blocks;
  const int begin = share * per_block;
  const int end = min(begin + per_block, lines.num_columns);
  const std::uint64_t tag = std::uint64_t{call.epoch} << 32;
#pragma unroll 1
  for (int column = begin + team.thread; column < end; column += team.count) {
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

/// A count of another rank, which was not there at the first look (`word`). Nothing is newer than the call, so what is
/// not of this call is older, however often epochs have gone round.
/// Another call's word where the wait is given up.
__device__ __noinline__ inline std::uint64_t poll_line_count(const CallContext call, int source,
                                                             const std::uint64_t* count) {
  std::uint64_t start_ns = 0;
#pragma unroll 1
  for (std::uint32_t polls = 0;; ++polls) {
    const std::uint64_t word = load_relaxed(count);
    if (epoch_of(word) == call.epoch) return word;
    if ((polls & 0x3fU) != 0x3fU) continue;
    if (start_ns == 0) start_ns = now_ns();
    if (gives_up(call, source, start_ns, polls + 1)) return word;
  }
}
__device__ inline std::int32_t await_line_count(const CallContext& call, int source, const std::uint64_t* count,
                                                std::uint64_t word, bool& ok) {
  if (epoch_of(word) != call.epoch) {
    word = poll_line_count(call, source, count);
    ok = ok && epoch_of(word) == call.epoch;
  }
  return static_cast<std::int32_t>(word);
}

/// Counts of all ranks, as far as this one needs them to place what it receives; `with_experts`: of its experts too.
/// `refusing_rank` (shared by the block) becomes the first rank that refused its input, if there is one. False in a
/// thread that has given up a wait.
__device__ inline bool await_tables(const CallContext& call, const LinePlan& lines, const LineTables& t, bool refused,
                                    bool with_experts, const Team& team, int& refusing_rank) {
  constexpr int kLoads = 3;  // on their way at once
  const DeviceGroup& group = *call.group;
  const int ranks = group.num_ranks;
  const int first_expert = expert_column(ranks, t.all.first[group.rank]);
  // Of each source: whether it refused, its tokens for each rank, what it has for the experts here.
  const int per_source = 1 + ranks + (with_experts ? t.num_local : 0);
  const int count = ranks * per_source;
  const float inverse = __frcp_rn(static_cast<float>(per_source));
  bool ok = true;
#pragma unroll 1
  for (int begin = team.thread; begin < count; begin += kLoads * team.count) {
    std::uint64_t words[kLoads];
    const std::uint64_t* places[kLoads];
    int sources[kLoads];
    int columns[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const int i = begin + j * team.count;
      // Exact, as in RankFinder.
      const auto source = static_cast<int>((static_cast<float>(i) + 0.5F) * inverse);
      const int idx = i - source * per_source;
      sources[j] = i < count ? source : -1;
      columns[j] = idx == 0 ? t.routing.num_columns : idx <= ranks ? idx - 1 : first_expert + idx - 1 - ranks;
      words[j] = 0;
      places[j] = line_counts(group, lines, call.epoch, group.rank, source) + columns[j];
      if (i < count && source != group.rank) words[j] = load_relaxed(places[j]);
    }
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const int source = sources[j];
      const int column = columns[j];
      if (source < 0) continue;
      const bool is_status = column == t.routing.num_columns;
      std::int32_t value = 0;
      if (source != group.rank) {
        value = await_line_count(call, source, places[j], words[j], ok);
      } else if (is_status) {
        value = refused ? 1 : 0;
      } else if (!refused) {
        value = t.routing.count(column);
      }
      if (is_status) {
        if (value != 0) atomicMin(&refusing_rank, source);
      } else if (column < ranks) {
        t.all.tokens[source * ranks + column] = value;
      } else {
        t.begin[source * t.num_local + column - first_expert] = value;
      }
    }
  }
  return ok;
}

/// What the block that keeps the books finds, in shared memory.
struct Books {
  int remote;   ///< assignments of this rank to experts of others
  int content;  ///< of all ranks to the experts here
  int trouble;  ///< not 0: a rank refused its input, is in another call, or does not come
};

/// The same with all counts, which the handle keeps; and whether all ranks are in this call.
__device__ inline bool await_books(const PrepareArgs& args, const CallContext& call, const LinePlan& lines,
                                   const LineTables& t, bool refused, const Team& team, int& refusing_rank,
                                   Books& books) {
  const DeviceGroup& group = args.group;
  const int ranks = group.num_ranks;
  const int first_expert = expert_column(ranks, t.all.first[group.rank]);
  const int num_columns = t.routing.num_columns;
  bool ok = true;
  bool trouble = false;
  int remote = 0;
  int content = 0;
#pragma unroll 1
  for (int source = 0; source < ranks; ++source) {
    const std::uint64_t* counts = line_counts(group, lines, call.epoch, group.rank, source);
#pragma unroll 1
    for (int column = team.thread; column <= num_columns; column += team.count) {
      std::int32_t value = 0;
      if (source != group.rank) {
        value = await_line_count(call, source, counts + column, load_relaxed(counts + column), ok);
      } else if (!refused && column < num_columns) {
        value = t.routing.count(column);
      }
      if (column == num_columns) {
        if (source == group.rank && refused) value = 1;
        if (value != 0) atomicMin(&refusing_rank, source);
        trouble = trouble || value != 0;
        continue;
      }
      args.handle.counts[source * num_columns + column] = value;
      const bool is_local = column >= first_expert && column < first_expert + t.num_local;
      if (column < ranks) t.all.tokens[source * ranks + column] = value;
      if (is_local) {
        t.begin[source * t.num_local + column - first_expert] = value;
        content += value;
      }
      if (source == group.rank && column >= ranks && !is_local) remote += value;
    }
  }
  for (int peer = team.thread; peer < ranks; peer += team.count) ok = starts_same_call(call, peer) && ok;
  remote = __reduce_add_sync(kFullWarp, remote);
  content = __reduce_add_sync(kFullWarp, content);
  if (lane_id() == 0) {
    atomicAdd(&books.remote, remote);
    atomicAdd(&books.content, content);
  }
  if (trouble || !ok) books.trouble = 1;
  return ok;
}

/// Where everything begins that this rank receives, from the counts in the tables.
__device__ inline void place_sources(const PrepareArgs& args, LineTables& t, bool with_experts, const Team& team) {
  const DispatchLayout& layout = args.layout;
  const int ranks = args.group.num_ranks;
  const int rank = args.group.rank;
  const int first_expert = t.all.first[rank];
  const bool blocks = layout.params().layout == OutputLayout::kExpertBlocks;
  // Rows of an expert begin behind those of the experts before it, which is known at once of blocks.
  const auto capacity = static_cast<std::int32_t>(layout.params().capacity_rows);
#pragma unroll 1
  for (int e = team.thread; e < t.num_local && with_experts; e += team.count) {
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
#pragma unroll 1
  for (int r = team.thread; r <= ranks; r += team.count) {
    std::int32_t begin = 0;
#pragma unroll 1
    for (int s = 0; s < r; ++s) begin += t.all.tokens[s * ranks + rank];
    t.pair_begin[r] = begin;
  }
  if (layout.params().layout != OutputLayout::kExpertMajor) return;
  team.meet();
  if (team.thread < kWarpSize) static_cast<void>(place_groups(layout, t.all, rank));
  team.meet();
#pragma unroll 1
  for (int i = team.thread; i < ranks * t.num_local; i += team.count) {
    const auto source = static_cast<int>(static_cast<unsigned>(i) / static_cast<unsigned>(t.num_local));
    t.begin[i] += t.all.group[first_expert + i - source * t.num_local];
  }
}

/// The same where nothing is received, whatever the counts say; by the whole block.
__device__ __noinline__ inline void place_nothing(const PrepareArgs& args, std::byte* memory) {
  LineTables t = tables_of(args, memory);
  const int ranks = args.group.num_ranks;
  for (int i = static_cast<int>(threadIdx.x); i < ranks * ranks; i += kLineThreads) t.all.tokens[i] = 0;
  for (int i = static_cast<int>(threadIdx.x); i < ranks * t.num_local; i += kLineThreads) t.begin[i] = 0;
  __syncthreads();
  place_sources(args, t, true, whole_block());
  __syncthreads();
}

}  // namespace epistle::cuda
