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
  alignas(16) std::int32_t rows[kWarpSize];  ///< that a received row goes to
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
__device__ inline void tell_line_counts(const DeviceGroup& group, const CallContext& call, const LinePlan& lines,
                                        const LineTables& t, bool refused, const Team& team) {
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
      const Voice voice = group.voice_to(peer);
      store_relaxed(line_counts(group, lines, call.epoch, voice.rank, voice.source) + column,
                    tag | (voice.source == group.rank ? static_cast<std::uint32_t>(value) : 0U));
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
    if (polls % kPollsPerLook != kPollsPerLook - 1) continue;
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

/// What all ranks have counted in one column, source by source: `see(source, value)`.
template <typename See>
__device__ inline void await_column(const DeviceGroup& group, const CallContext& call, const LinePlan& lines,
                                    const LineTables& t, bool refused, int column, bool& ok, const See& see) {
  constexpr int kLoads = 4;  // on their way at once
  const int ranks = group.num_ranks;
#pragma unroll 1
  for (int first = 0; first < ranks; first += kLoads) {
    std::uint64_t words[kLoads] = {};
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const int source = first + j;
      if (source >= ranks || source == group.rank) continue;
      words[j] = load_relaxed(line_counts(group, lines, call.epoch, group.rank, source) + column);
    }
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const int source = first + j;
      if (source >= ranks) continue;
      std::int32_t value = 0;
      if (source != group.rank) {
        value = await_line_count(call, source, line_counts(group, lines, call.epoch, group.rank, source) + column,
                                 words[j], ok);
      } else if (column == t.routing.num_columns) {
        value = refused ? 1 : 0;
      } else if (!refused) {
        value = t.routing.count(column);
      }
      see(source, value);
    }
  }
}

/// Adds up where the rows of one expert here begin, source by source. In blocks that is known at once; elsewhere they
/// also begin behind those of the experts before it (place_behind()).
struct ExpertPlaces {
  const LineTables& t;
  int local;
  std::int32_t begin;
  std::int32_t total = 0;

  __device__ ExpertPlaces(const DispatchLayout& layout, const LineTables& tables, int local_expert)
      : t(tables),
        local(local_expert),
        begin(layout.params().layout == OutputLayout::kExpertBlocks
                  ? local_expert * static_cast<std::int32_t>(layout.params().capacity_rows)
                  : 0) {}
  __device__ void add(int source, std::int32_t count) {
    t.begin[source * t.num_local + local] = begin + total;
    total += count;
  }
  __device__ void keep(int expert) const {
    t.all.total[expert] = total;
    t.all.group[expert] = begin;
  }
};

/// The rest of it, with the totals of all experts here there.
__device__ inline void place_behind(const PrepareArgs& args, const LineTables& t, const Team& team) {
  const DispatchLayout& layout = args.layout;
  if (layout.params().layout != OutputLayout::kExpertMajor) return;
  const int ranks = args.group.num_ranks;
  const int first_expert = t.all.first[args.group.rank];
  team.meet();
  if (team.thread < kWarpSize) static_cast<void>(place_groups(layout, t.all, args.group.rank));
  team.meet();
#pragma unroll 1
  for (int i = team.thread; i < ranks * t.num_local; i += team.count) {
    const auto source = static_cast<int>(static_cast<unsigned>(i) / static_cast<unsigned>(t.num_local));
    t.begin[i] += t.all.group[first_expert + i - source * t.num_local];
  }
}

/// Where the rows of every source begin among all that this rank receives; by one warp. `count_of(source)`: how many.
template <typename CountOf>
__device__ inline void place_pairs(const LineTables& t, int ranks, const CountOf& count_of) {
  std::int32_t behind = 0;
#pragma unroll 1
  for (int first = 0; first <= ranks; first += kWarpSize) {
    const int source = first + lane_id();
    const std::int32_t count = source < ranks ? count_of(source) : 0;
    std::int32_t end = count;
#pragma unroll
    for (int step = 1; step < kWarpSize; step *= 2) {
      const std::int32_t before = __shfl_up_sync(kFullWarp, end, step);
      if (lane_id() >= step) end += before;
    }
    if (source <= ranks) t.pair_begin[source] = behind + end - count;
    behind += __shfl_sync(kFullWarp, end, kWarpSize - 1);
  }
}

/// Waits for the counts of all ranks, as far as this one needs them to know where what it receives lies, and for
/// whether they refused: `refusing_rank` (shared by the block) becomes the first that did, if there is one. False in a
/// thread that has given up a wait.
__device__ inline bool place_received(const PrepareArgs& args, const CallContext& call, const LinePlan& lines,
                                      const LineTables& t, bool refused, const Team& team, int& refusing_rank) {
  const DeviceGroup& group = args.group;
  const int first_expert = t.all.first[group.rank];
  const bool with_experts = !args.layout.token_major();
  bool ok = true;
  // The last warp sees to the sources, the others to the experts.
  const int num_experts_threads = team.count - kWarpSize;
  if (team.thread >= num_experts_threads) {
    place_pairs(t, group.num_ranks, [&](int source) {
      const std::uint64_t* counts = line_counts(group, lines, call.epoch, group.rank, source);
      const int columns[] = {t.routing.num_columns, group.rank};
      std::int32_t values[] = {refused ? 1 : 0, 0};
      std::uint64_t words[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) words[i] = source != group.rank ? load_relaxed(counts + columns[i]) : 0;
      if (!refused && source == group.rank) values[1] = t.routing.count(group.rank);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (source != group.rank) values[i] = await_line_count(call, source, counts + columns[i], words[i], ok);
      }
      if (values[0] != 0) atomicMin(&refusing_rank, source);
      return values[1];
    });
  } else {
#pragma unroll 1
    for (int local = team.thread; local < t.num_local && with_experts; local += num_experts_threads) {
      ExpertPlaces places(args.layout, t, local);
      await_column(group, call, lines, t, refused, expert_column(group.num_ranks, first_expert + local), ok,
                   [&](int source, std::int32_t value) { places.add(source, value); });
      places.keep(first_expert + local);
    }
  }
  place_behind(args, t, team);
  return ok;
}

/// What the block that keeps the books finds, in shared memory.
struct Books {
  int remote;   ///< assignments of this rank to experts of others
  int content;  ///< of all ranks to the experts here
  int lost;     ///< of this rank to experts of ranks that are left out; see count_lost()
  int trouble;  ///< not 0: a rank refused its input, is in another call, or does not come
};

/// The same with all counts, which the handle keeps; and whether all ranks are in this call. By the whole block.
__device__ inline bool await_books(const PrepareArgs& args, const CallContext& call, const LinePlan& lines,
                                   const LineTables& t, bool refused, int& refusing_rank, Books& books) {
  const DeviceGroup& group = args.group;
  const int ranks = group.num_ranks;
  const int num_columns = t.routing.num_columns;
  const int first_expert = t.all.first[group.rank];
  bool ok = true;
  bool trouble = false;
  int remote = 0;
  int content = 0;
#pragma unroll 1
  for (int column = static_cast<int>(threadIdx.x); column <= num_columns; column += kLineThreads) {
    const int local = column - expert_column(ranks, first_expert);
    const bool is_local = local >= 0 && local < t.num_local && column < num_columns;
    ExpertPlaces places(args.layout, t, is_local ? local : 0);
    await_column(group, call, lines, t, refused, column, ok, [&](int source, std::int32_t value) {
      if (column == num_columns) {
        if (value == 0) return;
        atomicMin(&refusing_rank, source);
        trouble = true;
        return;
      }
      args.handle.counts[source * num_columns + column] = value;
      if (column < ranks) {
        t.all.tokens[source * ranks + column] = value;
      } else if (is_local) {
        places.add(source, value);
      } else if (source == group.rank) {
        remote += value;
      }
    });
    if (!is_local) continue;
    places.keep(first_expert + local);
    content += places.total;
  }
  for (int peer = static_cast<int>(threadIdx.x); peer < ranks; peer += kLineThreads) {
    ok = starts_same_call(call, peer) && ok;
  }
  remote = __reduce_add_sync(kFullWarp, remote);
  content = __reduce_add_sync(kFullWarp, content);
  if (lane_id() == 0 && (remote | content) != 0) {
    atomicAdd(&books.remote, remote);
    atomicAdd(&books.content, content);
  }
  if (trouble || !ok) books.trouble = 1;
  place_behind(args, t, whole_block());
  return ok;
}

/// Where everything lies where nothing is received, whatever the counts say; by the whole block.
__device__ __noinline__ inline void place_nothing(const PrepareArgs& args, std::byte* memory) {
  const LineTables t = tables_of(args, memory);
  const int ranks = args.group.num_ranks;
  const int first_expert = t.all.first[args.group.rank];
  for (int i = static_cast<int>(threadIdx.x); i < ranks * ranks; i += kLineThreads) t.all.tokens[i] = 0;
  for (int local = static_cast<int>(threadIdx.x); local < t.num_local; local += kLineThreads) {
    ExpertPlaces places(args.layout, t, local);
    for (int source = 0; source < ranks; ++source) places.add(source, 0);
    places.keep(first_expert + local);
  }
  for (int r = static_cast<int>(threadIdx.x); r <= ranks; r += kLineThreads) t.pair_begin[r] = 0;
  place_behind(args, t, whole_block());
  __syncthreads();
}

}  // namespace epistle::cuda
