// prepare, first part: counts of all blocks of all ranks, and the tables that follow from them.
#pragma once

#include "dispatch/cuda/device/signals.cuh"
#include "dispatch/cuda/engine/launch.hpp"

namespace epistle::cuda {

inline constexpr std::uint8_t kNoRank = 0xff;
inline constexpr std::int64_t kNoLimit = (std::int64_t{1} << 31) - 1;

/// Shared memory of a block. Columns are the ranks, then the experts.
struct Tables {
  int tile_tokens;
  int words;               // tile_tokens / 32
  int columns;             // ranks + experts
  std::uint32_t* bitmap;   // [words][columns] bit t: token t of the tile goes there
  std::uint16_t* before;   // [words][columns] bits set in the words before
  std::int32_t* counts;    // [columns] of this block
  std::int32_t* base;      // [columns] next place: pair index at a rank, output row of an expert
  std::int32_t* total;     // [experts] over all ranks
  std::int32_t* group;     // [experts] first row of an expert's group
  std::int32_t* tokens;    // [ranks][ranks] tokens from a source to a destination
  std::int32_t* out_rows;  // [ranks] output rows of a rank
  std::int32_t* first;     // [ranks] first expert of a rank
  std::int32_t* stage;     // [ranks] row of this rank's stage less pair index at that rank
  std::byte** records;     // [ranks] where a rank receives records
  std::int32_t* routed;    // [1] tokens of this rank that are routed; those behind them have no experts
  std::uint8_t* rank_of;   // [experts]
  // By top-k position, then token (see at()).
  std::int32_t* ids;
  std::int32_t* rows;  // output row at the expert's rank; -1 = none
  float* weights;
  std::uint8_t* ranks;  // rank of the expert, kNoRank = none
  int2* sends;          // [tile_tokens][sends_per_token] destination (-1 = none) and pair index there

  /// Four words behind every position keep both walks free of bank conflicts: along tokens, and along positions.
  [[nodiscard]] __device__ int at(int token, int position) const {
    return position * (tile_tokens + kPositionPadding) + token;
  }
  static constexpr int kPositionPadding = 4;
};

/// What a block's shared memory depends on.
struct TableShape {
  int ranks;
  int experts;
  int top_k;
  int sends_per_token;
  int tile_tokens;
};

__host__ __device__ inline std::int64_t round16(std::int64_t bytes) { return (bytes + 15) / 16 * 16; }

/// Lays the tables out from `memory` on; returns the bytes they take.
__host__ __device__ inline std::int64_t carve(std::byte* memory, const TableShape& shape, Tables& t) {
  std::int64_t used = 0;
  const auto take = [&](auto*& part, std::int64_t count) {
    part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(memory + used);
    used += round16(count * static_cast<std::int64_t>(sizeof(*part)));
  };
  const std::int64_t columns = std::int64_t{shape.ranks} + shape.experts;
  const std::int64_t entries = std::int64_t{shape.tile_tokens + Tables::kPositionPadding} * shape.top_k;
  t.tile_tokens = shape.tile_tokens;
  t.words = shape.tile_tokens / 32;
  t.columns = shape.ranks + shape.experts;
  take(t.bitmap, columns * t.words);
  take(t.before, columns * t.words);
  take(t.counts, columns);
  take(t.base, columns);
  take(t.total, shape.experts);
  take(t.group, shape.experts);
  take(t.tokens, std::int64_t{shape.ranks} * shape.ranks);
  take(t.out_rows, shape.ranks);
  take(t.first, shape.ranks);
  take(t.stage, shape.ranks);
  take(t.records, shape.ranks);
  take(t.routed, 1);
  take(t.rank_of, shape.experts);
  take(t.ids, entries);
  take(t.rows, entries);
  take(t.weights, entries);
  take(t.ranks, entries);
  take(t.sends, std::int64_t{shape.tile_tokens} * shape.sends_per_token);
  return used;
}

/// What all threads of a block know after the exchange.
struct Exchange {
  bool refused;
  bool disagreed;     // other ranks are in other calls, or have refused theirs; nothing is known of them
  int refusing_rank;  // -1: none refused its input
  int overflow_rank;  // -1: all fits
  std::int64_t overflow_rows;
  std::int64_t remote_assignments;  // of this rank to other ranks' experts, if all fits
};

/// The id that lies so many ids behind the first one.
__device__ inline std::int64_t read_id(const PrepareArgs& args, std::int64_t offset) {
  return args.ids_are_64_bit ? static_cast<const std::int64_t*>(args.expert_ids)[offset]
                             : static_cast<const std::int32_t*>(args.expert_ids)[offset];
}

/// The slots that serve this rank's tokens.
__device__ inline SlotChooser slot_chooser(const PrepareArgs& args) {
  const std::uint64_t seed = args.step_seed_at != nullptr ? __ldcg(args.step_seed_at) : args.step_seed;
  return {
      {args.slots.replica_begin, args.slots.entries}, args.slots.policy, args.group.rank, args.first_position, seed};
}

/// Adds up what an expert was given, `count` of it for one of its slots where experts are placed.
__device__ inline void count_expert_tokens(const PrepareArgs& args, int slot, int count) {
  if (count == 0) return;
  const int expert = args.places_experts() ? args.slots.expert_of_slot[slot] : slot;
  atomicAdd(&args.expert_tokens[expert], static_cast<unsigned long long>(count));
}

/// Adds up what this rank's routing has lost: assignments to experts of ranks that are left out. By the whole block, to
/// `lost`, in shared memory. Reads the routing once more: it is rare.
__device__ __noinline__ inline void count_lost(const PrepareArgs& args, int num_routed, int& lost) {
  const ExpertPartition partition = args.layout.partition();
  const int top_k = args.handle.top_k;
  SlotChooser chooser;
  if (args.places_experts()) chooser = slot_chooser(args);
  for (int i = static_cast<int>(threadIdx.x); i < num_routed * top_k; i += static_cast<int>(blockDim.x)) {
    const int token = i / top_k;
    const auto expert = static_cast<std::int32_t>(read_id(args, token * args.id_stride + (i - token * top_k)));
    if (expert == kNoExpert) continue;
    const std::int32_t column = args.places_experts() ? chooser.slot_of(expert, token) : expert;
    if (!args.group.is_masked(partition.rank_of(column))) continue;
    atomicAdd(&args.lost_tokens[expert], 1ULL);
    atomicAdd(&lost, 1);
  }
}

// ---- Telling --------------------------------------------------------------------------------------------------------

/// Tells every rank what this block has counted. Every count carries the epoch, so it needs neither fence nor flag.
template <int kThreads = kPrepareThreads>
__device__ inline void tell_counts(const PrepareArgs& args, const CallContext& call, const Tables& t, bool refused) {
  const DeviceGroup& group = args.group;
  const int ranks = group.num_ranks;
  const std::uint64_t tag = std::uint64_t{call.epoch} << 32;
  // A smaller grid than agreed on: the places of the blocks that are not there get zeros.
  const int places = group.control.count_blocks;
  for (int peer = 0; peer < ranks; ++peer) {
    const Voice voice = group.voice_to(peer);
    const bool masked = voice.source != group.rank;
    for (int place = blockIdx.x; place < places; place += gridDim.x) {
      std::uint64_t* out = group.control_at<std::uint64_t>(voice.rank, group.control.counts_offset()) +
                           (std::int64_t{voice.source} * places + place) * group.control.count_columns();
      const bool empty = refused || masked || place != static_cast<int>(blockIdx.x);
      for (int c = threadIdx.x; c <= t.columns; c += kThreads) {
        const int count = c == t.columns ? (refused && !masked ? 1 : 0) : empty ? 0 : t.counts[c];
        store_relaxed(out + c, tag | static_cast<std::uint32_t>(count));
      }
    }
  }
}

/// A count of another block, when it is there.
__device__ inline std::int32_t await_count(const CallContext& call, int source, const std::uint64_t* count, bool& ok) {
  std::uint64_t word = load_relaxed(count);
  if (epoch_of(word) != call.epoch) {
    ok = poll(call, source, count) && ok;
    word = load_relaxed(count);
  }
  return static_cast<std::int32_t>(word);
}

// ---- Tables ---------------------------------------------------------------------------------------------------------

__device__ inline std::int64_t pair_limit(const DispatchLayout& layout) {
  return layout.token_major() && layout.params().sizing == SizingMode::kCapacity ? layout.params().capacity_rows
                                                                                 : kNoLimit;
}

/// First row behind those that an expert's rows may take.
__device__ inline std::int64_t row_end(const DispatchLayout& layout, std::int32_t group_begin) {
  if (layout.params().layout == OutputLayout::kExpertBlocks) return group_begin + layout.params().capacity_rows;
  return layout.params().sizing == SizingMode::kCapacity ? layout.params().capacity_rows : kNoLimit;
}

__device__ inline std::int32_t clip(std::int64_t value, std::int64_t limit) {
  return static_cast<std::int32_t>(value < limit ? value : limit);
}

/// First rows of the groups of one rank's experts, by one warp; returns the rows of all of them.
__device__ inline std::int32_t place_groups(const DispatchLayout& layout, const Tables& t, int rank) {
  const ExpertPartition partition = layout.partition();
  const int first = partition.first_expert(rank);
  const int num_local = partition.num_local_experts(rank);
  const int lane = static_cast<int>(threadIdx.x) & 31;
  std::int32_t row = 0;
  for (int begin = 0; begin < num_local; begin += 32) {
    const int local = begin + lane;
    const std::int32_t rows =
        local < num_local ? static_cast<std::int32_t>(layout.group_rows(t.total[first + local])) : 0;
    std::int32_t sum = rows;
    for (int step = 1; step < 32; step *= 2) {
      const std::int32_t other = __shfl_up_sync(0xffffffffU, sum, static_cast<unsigned>(step));
      if (lane >= step) sum += other;
    }
    if (local < num_local) t.group[first + local] = row + sum - rows;
    row += __shfl_sync(0xffffffffU, sum, 31);
  }
  return row;
}

/// Adds up everybody's counts as they arrive. All loads of a thread are independent, so that their latencies overlap.
/// False when a wait was given up, or a rank is in another call.
template <int kThreads = kPrepareThreads>
__device__ inline bool sum_counts(const PrepareArgs& args, const CallContext& call, const Tables& t, int& refusing_rank,
                                  int& remote) {
  constexpr int kLoads = 8;
  const DeviceGroup& group = args.group;
  const int ranks = group.num_ranks;
  const int experts = group.control.num_experts;
  const int places = group.control.count_blocks;
  const int own_place = group.rank * places + static_cast<int>(blockIdx.x);
  const int num_places = ranks * places;
  const std::int32_t stride = group.control.count_columns();
  const auto* counts = group.control_at<const std::uint64_t>(group.rank, group.control.counts_offset());
  static_assert(kMaxRanks <= kThreads, "a thread for the announcement of every rank");
  const int peer = static_cast<int>(threadIdx.x);
  const std::uint64_t announced = peer < ranks ? load_relaxed(ready_flag(call, peer)) : call.announced;
  bool ok = true;
  for (int i = threadIdx.x; i < num_places * (ranks + 1); i += kThreads) {
    const int place = i / (ranks + 1);
    const int d = i - place * (ranks + 1);
    const int source = place / places;
    const std::int32_t count =
        await_count(call, source, counts + std::int64_t{place} * stride + (d < ranks ? d : t.columns), ok);
    if (count == 0) continue;
    if (d == ranks) {
      atomicMin(&refusing_rank, source);
      continue;
    }
    atomicAdd(&t.tokens[source * ranks + d], count);
    if (place < own_place) atomicAdd(&t.base[d], count);
  }
  const int first_expert = args.layout.partition().first_expert(group.rank);
  const int end_expert = first_expert + args.layout.partition().num_local_experts(group.rank);
  const int chunks = (num_places + kLoads - 1) / kLoads;
  int mine = 0;
  for (int i = threadIdx.x; i < experts * chunks; i += kThreads) {
    const int chunk = i / experts;
    const int e = i - chunk * experts;
    std::uint64_t words[kLoads];
    const std::uint64_t* first = counts + std::int64_t{chunk} * kLoads * stride + ranks + e;
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      words[j] = chunk * kLoads + j < num_places ? load_relaxed(first + std::int64_t{j} * stride)
                                                 : std::uint64_t{call.epoch} << 32;
    }
    std::int32_t loaded[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      loaded[j] = static_cast<std::int32_t>(words[j]);
      if (epoch_of(words[j]) == call.epoch) continue;
      loaded[j] = await_count(call, (chunk * kLoads + j) / places, first + std::int64_t{j} * stride, ok);
    }
    std::int32_t sum = 0;
    std::int32_t earlier = 0;
    const bool leaves = e < first_expert || e >= end_expert;
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const int place = chunk * kLoads + j;
      sum += loaded[j];
      if (place < own_place) earlier += loaded[j];
      if (leaves && place >= group.rank * places && place < (group.rank + 1) * places) mine += loaded[j];
    }
    if (sum > 0) atomicAdd(&t.total[e], sum);
    if (earlier > 0) atomicAdd(&t.base[ranks + e], earlier);
  }
  mine = __reduce_add_sync(0xffffffffU, mine);
  if ((threadIdx.x & 31) == 0 && mine > 0) atomicAdd(&remote, mine);
  // Asked for above, so that it takes no time of its own.
  return (announced == call.announced || starts_same_call(call, peer)) && ok;
}

/// Where everything of this block begins, and whether all fits; false when a wait was given up for good. `base`,
/// `total` and `tokens` must be zero.
template <int kThreads = kPrepareThreads>
__device__ inline bool compute_tables(const PrepareArgs& args, const CallContext& call, const Tables& t,
                                      Exchange& exchange) {
  const DeviceGroup& group = args.group;
  const DispatchLayout& layout = args.layout;
  const int ranks = group.num_ranks;
  const int experts = group.control.num_experts;
  __shared__ int refusing_rank;
  __shared__ int overflow_rank;
  __shared__ int overflow_rows;
  __shared__ int remote;
  if (threadIdx.x == 0) {
    refusing_rank = kMaxRanks;
    overflow_rank = kMaxRanks;
    overflow_rows = 0;
    remote = 0;
  }
  __syncthreads();
  const bool ok = sum_counts<kThreads>(args, call, t, refusing_rank, remote);
  exchange.disagreed = __syncthreads_and(ok) == 0;
  if (exchange.disagreed) {
    // Either a wait was given up, or all ranks see that they disagree: then the routing is a void one.
    const bool agreed = settle(call);
    if (__syncthreads_or(agreed || has_failed(group)) != 0) return false;
    for (int e = threadIdx.x; e < experts; e += kThreads) t.total[e] = 0;
    for (int c = threadIdx.x; c < t.columns; c += kThreads) t.base[c] = 0;
    for (int i = threadIdx.x; i < ranks * ranks; i += kThreads) t.tokens[i] = 0;
    if (threadIdx.x == 0) {
      refusing_rank = kMaxRanks;
      remote = 0;
    }
    __syncthreads();
  }
  for (int d = threadIdx.x; d < ranks; d += kThreads) {
    std::int32_t stage = 0;
    for (int s = 0; s < group.rank; ++s) stage -= t.tokens[s * ranks + d];
    for (int r = 0; r < d; ++r) stage += r != group.rank ? t.tokens[group.rank * ranks + r] : 0;
    t.stage[d] = stage;
  }
  if (layout.token_major()) {
    const std::int64_t limit = pair_limit(layout);
    for (int d = threadIdx.x; d < ranks; d += kThreads) {
      std::int64_t all = 0;
      for (int s = 0; s < ranks; ++s) all += t.tokens[s * ranks + d];
      t.out_rows[d] = static_cast<std::int32_t>(layout.static_output_rows(clip(all, limit)));
      if (all > limit) atomicMin(&overflow_rank, d);
    }
  } else {
    for (int d = static_cast<int>(threadIdx.x) / 32; d < ranks; d += (kThreads / 32)) {
      const std::int32_t rows = place_groups(layout, t, d);
      if ((threadIdx.x & 31) == 0) t.out_rows[d] = static_cast<std::int32_t>(layout.static_output_rows(rows));
    }
    __syncthreads();
    for (int e = threadIdx.x; e < experts; e += kThreads) {
      t.base[ranks + e] += t.group[e];
      if (t.total[e] > 0 && std::int64_t{t.group[e]} + t.total[e] > row_end(layout, t.group[e])) {
        atomicMin(&overflow_rank, static_cast<int>(t.rank_of[e]));
      }
    }
  }
  __syncthreads();
  // How many rows the first rank with an overflow lacks, for the message.
  if (overflow_rank < kMaxRanks) {
    __syncthreads();
    if (layout.token_major() && threadIdx.x == 0) {
      for (int s = 0; s < ranks; ++s) overflow_rows += t.tokens[s * ranks + overflow_rank];
      overflow_rows -= static_cast<int>(pair_limit(layout));
    }
    for (int e = threadIdx.x; e < experts && !layout.token_major(); e += kThreads) {
      if (t.rank_of[e] != overflow_rank) continue;
      const std::int64_t room = row_end(layout, t.group[e]) - t.group[e];
      const std::int64_t over = t.total[e] - (room > 0 ? room : 0);
      if (over > 0) atomicAdd(&overflow_rows, static_cast<int>(over));
    }
    __syncthreads();
  }
  exchange.refusing_rank = refusing_rank < kMaxRanks ? refusing_rank : -1;
  exchange.overflow_rank = overflow_rank < kMaxRanks ? overflow_rank : -1;
  exchange.overflow_rows = overflow_rows;
  exchange.remote_assignments = remote;
  exchange.refused =
      exchange.disagreed || exchange.refusing_rank >= 0 || (exchange.overflow_rank >= 0 && !args.drop_overflow);
  return true;
}

}  // namespace epistle::cuda
