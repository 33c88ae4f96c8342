// prepare on the device: one kernel from a routing table to a place for every row, on both sides.
//
//   count     every block counts its share of the tokens and tells all ranks
//   tables    with the counts of all blocks of all ranks, every block knows where its rows begin everywhere
//   place     every assignment gets its row; one record per (token, rank) goes to the receiver
//   describe  when all records are there, the receiver's description is made of them
//
// Positions within a block come from bitmaps: bit t of column c says that token t of the tile goes there, so the number
// of set bits before it is its place among the tile's rows.
#include "dispatch/cuda/launch.hpp"
#include "dispatch/cuda/signals.cuh"

namespace epistle::cuda {
namespace {

constexpr int kTileWords = kTileTokens / 32;
constexpr int kWarps = kPrepareThreads / 32;
constexpr std::uint32_t kPhaseLayout = 4;  // Phase::kLayout

/// Shared memory of a block.
struct Tables {
  std::uint32_t* bitmap;   // [R + E][kTileWords]
  std::int32_t* counts;    // [R + E] of this block
  std::int32_t* base;      // [R + E] next place: pair index at a rank, output row of an expert
  std::int32_t* total;     // [E] over all ranks
  std::int32_t* group;     // [E] first row of an expert's group
  std::int32_t* tokens;    // [R][R] tokens from a source to a destination
  std::int32_t* pairs;     // [R] pairs of this block that fit
  std::int32_t* out_rows;  // [R] output rows of a rank
  std::uint8_t* rank_of;   // [E]
};

__host__ __device__ inline std::int64_t round16(std::int64_t bytes) { return (bytes + 15) / 16 * 16; }

__host__ __device__ inline std::int64_t table_bytes(std::int64_t ranks, std::int64_t experts) {
  const std::int64_t columns = ranks + experts;
  return round16(columns * kTileWords * 4) + 2 * round16(columns * 4) + 2 * round16(experts * 4) +
         round16(ranks * ranks * 4) + 2 * round16(ranks * 4) + round16(experts);
}

__device__ Tables carve(std::byte* memory, int ranks, int experts) {
  const auto take = [&memory](std::int64_t bytes) {
    std::byte* part = memory;
    memory += round16(bytes);
    return part;
  };
  const std::int64_t columns = ranks + experts;
  Tables t;
  t.bitmap = reinterpret_cast<std::uint32_t*>(take(columns * kTileWords * 4));
  t.counts = reinterpret_cast<std::int32_t*>(take(columns * 4));
  t.base = reinterpret_cast<std::int32_t*>(take(columns * 4));
  t.total = reinterpret_cast<std::int32_t*>(take(experts * 4));
  t.group = reinterpret_cast<std::int32_t*>(take(experts * 4));
  t.tokens = reinterpret_cast<std::int32_t*>(take(ranks * ranks * 4));
  t.pairs = reinterpret_cast<std::int32_t*>(take(ranks * 4));
  t.out_rows = reinterpret_cast<std::int32_t*>(take(ranks * 4));
  t.rank_of = reinterpret_cast<std::uint8_t*>(take(experts));
  return t;
}

__device__ inline std::int64_t read_id(const PrepareArgs& args, std::int64_t entry) {
  return args.ids_are_64_bit ? static_cast<const std::int64_t*>(args.expert_ids)[entry]
                             : static_cast<const std::int32_t*>(args.expert_ids)[entry];
}

/// How many tokens of the tile before `token` have their bit set in a column.
__device__ inline int place_in_tile(const std::uint32_t* column, int token) {
  const int word = token >> 5;
  int before = __popc(column[word] & ((1U << (token & 31)) - 1));
  for (int w = 0; w < word; ++w) before += __popc(column[w]);
  return before;
}

__device__ inline int warp_sum(int value) { return __reduce_add_sync(0xffffffffU, value); }

/// The block's share of the tokens.
struct Share {
  std::int64_t begin;
  std::int64_t end;
};
__device__ inline Share block_share(std::int64_t num_tokens) {
  const std::int64_t per_block = (num_tokens + gridDim.x - 1) / gridDim.x;
  const std::int64_t begin = min(num_tokens, per_block * blockIdx.x);
  return {begin, min(num_tokens, begin + per_block)};
}

/// Sets the bitmaps of a tile. The first pass also copies ids and weights into the handle and checks them.
template <bool kFirst>
__device__ void mark_tile(const PrepareArgs& args, const Tables& t, std::int64_t tile_begin, int tile_tokens,
                          bool& bad) {
  const int ranks = args.group.num_ranks;
  const int experts = args.group.control.num_experts;
  const int top_k = args.handle.top_k;
  for (int i = threadIdx.x; i < (ranks + experts) * kTileWords; i += kPrepareThreads) t.bitmap[i] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < tile_tokens * top_k; i += kPrepareThreads) {
    const std::int64_t entry = tile_begin * top_k + i;
    std::int64_t id = 0;
    if constexpr (kFirst) {
      id = read_id(args, entry);
      args.handle.weights[entry] = args.weights != nullptr ? args.weights[entry] : 1.0F;
    } else {
      id = args.handle.expert_ids[entry];
    }
    if (kFirst && (id < kNoExpert || id >= experts)) {
      bad = true;
      atomicMax(&args.group.local->first_bad_entry, ~static_cast<unsigned long long>(entry));
      id = kNoExpert;
    }
    if constexpr (kFirst) args.handle.expert_ids[entry] = static_cast<std::int32_t>(id);
    if (id == kNoExpert) continue;
    const int token = i / top_k;
    const std::uint32_t bit = 1U << (token & 31);
    const std::uint32_t old = atomicOr(&t.bitmap[(ranks + id) * kTileWords + (token >> 5)], bit);
    if (kFirst && (old & bit) != 0) {
      bad = true;
      atomicMax(&args.group.local->first_bad_entry, ~static_cast<unsigned long long>(entry));
    }
    atomicOr(&t.bitmap[t.rank_of[id] * kTileWords + (token >> 5)], bit);
  }
  __syncthreads();
}

__device__ inline int tile_count(const Tables& t, int column) {
  int count = 0;
  for (int w = 0; w < kTileWords; ++w) count += __popc(t.bitmap[column * kTileWords + w]);
  return count;
}

// ---- Count ----------------------------------------------------------------------------------------------------------

/// Counts this block's tokens and tells every rank.
__device__ void count_and_tell(const PrepareArgs& args, const CallContext& call, const Tables& t) {
  const DeviceGroup& group = args.group;
  const int ranks = group.num_ranks;
  const int columns = ranks + group.control.num_experts;
  for (int c = threadIdx.x; c < columns; c += kPrepareThreads) t.counts[c] = 0;
  bool bad = false;
  const Share share = block_share(args.handle.num_tokens);
  for (std::int64_t tile = share.begin; tile < share.end; tile += kTileTokens) {
    mark_tile<true>(args, t, tile, static_cast<int>(min(std::int64_t{kTileTokens}, share.end - tile)), bad);
    for (int c = threadIdx.x; c < columns; c += kPrepareThreads) t.counts[c] += tile_count(t, c);
    __syncthreads();
  }
  const bool refused = __syncthreads_or(bad || args.refuse) != 0;
  // A smaller grid than agreed on: the places of the blocks that are not there get zeros.
  const int places = group.control.count_blocks;
  for (int peer = 0; peer < ranks; ++peer) {
    for (int place = blockIdx.x; place < places; place += gridDim.x) {
      std::int32_t* out = group.control_at<std::int32_t>(peer, group.control.counts_offset()) +
                          (std::int64_t{group.rank} * places + place) * group.control.count_columns();
      const bool empty = refused || place != static_cast<int>(blockIdx.x);
      for (int c = threadIdx.x; c < columns; c += kPrepareThreads) out[c] = empty ? 0 : t.counts[c];
      if (threadIdx.x == 0) out[columns] = refused ? 1 : 0;
    }
  }
  __threadfence_system();
  __syncthreads();
  for (int i = threadIdx.x; i < ranks * places; i += kPrepareThreads) {
    const int place = i % places;
    if (place % static_cast<int>(gridDim.x) != static_cast<int>(blockIdx.x)) continue;
    std::uint32_t* flag = group.control_at<std::uint32_t>(i / places, group.control.count_flags_offset()) +
                          std::int64_t{group.rank} * places + place;
    store_release(flag, call.epoch);
  }
}

__device__ bool wait_for_counts(const CallContext& call) {
  const DeviceGroup& group = *call.group;
  const auto* flags = group.control_at<const std::uint32_t>(group.rank, group.control.count_flags_offset());
  bool ok = true;
  const int places = group.control.count_blocks;
  for (int i = threadIdx.x; i < group.num_ranks * places; i += kPrepareThreads) {
    ok = ok && wait_for_flag(call, i / places, flags + i);
  }
  return __syncthreads_and(ok) != 0;
}

// ---- Tables ---------------------------------------------------------------------------------------------------------

/// What all threads of a block know after the exchange.
struct Exchange {
  bool refused;
  int refusing_rank;          // -1: none refused its input
  int overflow_rank;          // -1: all fits
  std::int64_t overflow_rows;
};

__device__ inline std::int64_t pair_limit(const DispatchLayout& layout) {
  return layout.token_major() && layout.params().sizing == Sizing::kCapacity ? layout.params().capacity_rows
                                                                             : (std::int64_t{1} << 31) - 1;
}

/// First row behind those that an expert's rows may take.
__device__ inline std::int64_t row_end(const DispatchLayout& layout, std::int32_t group_begin) {
  if (layout.params().layout == OutputLayout::kExpertSlots) return group_begin + layout.params().capacity_rows;
  return layout.params().sizing == Sizing::kCapacity ? layout.params().capacity_rows : (std::int64_t{1} << 31) - 1;
}

__device__ inline std::int32_t clip(std::int64_t value, std::int64_t limit) {
  return static_cast<std::int32_t>(value < limit ? value : limit);
}

/// First rows of the groups of one rank's experts, by one warp; returns the rows of all of them.
__device__ std::int32_t place_groups(const DispatchLayout& layout, const Tables& t, int rank) {
  const ExpertPartition partition = layout.partition();
  const int first = partition.first_expert(rank);
  const int num_local = partition.num_local_experts(rank);
  const int lane = threadIdx.x & 31;
  std::int32_t row = 0;
  for (int begin = 0; begin < num_local; begin += 32) {
    const int local = begin + lane;
    const std::int32_t rows = local < num_local ? static_cast<std::int32_t>(layout.group_rows(t.total[first + local])) : 0;
    std::int32_t sum = rows;
    for (int step = 1; step < 32; step *= 2) {
      const std::int32_t other = __shfl_up_sync(0xffffffffU, sum, step);
      if (lane >= step) sum += other;
    }
    if (local < num_local) t.group[first + local] = row + sum - rows;
    row += __shfl_sync(0xffffffffU, sum, 31);
  }
  return row;
}

/// Sums the counts: where everything of this block begins, and whether all fits.
__device__ Exchange compute_tables(const PrepareArgs& args, const Tables& t) {
  const DeviceGroup& group = args.group;
  const DispatchLayout& layout = args.layout;
  const int ranks = group.num_ranks;
  const int experts = group.control.num_experts;
  const int blocks = group.control.count_blocks;
  const std::int32_t stride = group.control.count_columns();
  const auto* counts = group.control_at<const std::int32_t>(group.rank, group.control.counts_offset());
  __shared__ int refusing_rank;
  __shared__ int overflow_rank;
  __shared__ int overflow_rows;
  if (threadIdx.x == 0) {
    refusing_rank = kMaxRanks;
    overflow_rank = kMaxRanks;
    overflow_rows = 0;
  }
  __syncthreads();
  const auto at = [&](int source, int block, int column) {
    return __ldcg(counts + (std::int64_t{source} * blocks + block) * stride + column);
  };
  for (int i = threadIdx.x; i < ranks * blocks; i += kPrepareThreads) {
    if (at(i / blocks, i % blocks, ranks + experts) != 0) atomicMin(&refusing_rank, i / blocks);
  }
  for (int i = threadIdx.x; i < ranks * ranks; i += kPrepareThreads) {
    std::int32_t sum = 0;
    for (int block = 0; block < blocks; ++block) sum += at(i / ranks, block, i % ranks);
    t.tokens[i] = sum;
  }
  for (int e = threadIdx.x; e < experts; e += kPrepareThreads) {
    std::int32_t total = 0;
    std::int32_t before = 0;
#pragma unroll 4
    for (int i = 0; i < ranks * blocks; ++i) {
      const std::int32_t count = at(i / blocks, i % blocks, ranks + e);
      total += count;
      if (i < group.rank * blocks + static_cast<int>(blockIdx.x)) before += count;
    }
    t.total[e] = total;
    t.base[ranks + e] = before;
  }
  __syncthreads();
  for (int d = threadIdx.x; d < ranks; d += kPrepareThreads) {
    std::int32_t before = 0;
    std::int32_t all = 0;
    for (int s = 0; s < ranks; ++s) {
      if (s < group.rank) before += t.tokens[s * ranks + d];
      all += t.tokens[s * ranks + d];
    }
    for (int block = 0; block < static_cast<int>(blockIdx.x); ++block) before += at(group.rank, block, d);
    t.base[d] = before;
    t.pairs[d] = 0;
    if (!layout.token_major()) continue;
    const std::int64_t limit = pair_limit(layout);
    t.out_rows[d] = static_cast<std::int32_t>(layout.static_output_rows(clip(all, limit)));
    if (all > limit) {
      atomicMin(&overflow_rank, d);
    }
  }
  if (!layout.token_major()) {
    for (int d = threadIdx.x / 32; d < ranks; d += kWarps) {
      const std::int32_t rows = place_groups(layout, t, d);
      if ((threadIdx.x & 31) == 0) t.out_rows[d] = static_cast<std::int32_t>(layout.static_output_rows(rows));
    }
    __syncthreads();
    for (int e = threadIdx.x; e < experts; e += kPrepareThreads) {
      t.base[ranks + e] += t.group[e];
      if (std::int64_t{t.group[e]} + t.total[e] > row_end(layout, t.group[e]) && t.total[e] > 0) {
        atomicMin(&overflow_rank, static_cast<int>(t.rank_of[e]));
      }
    }
  }
  __syncthreads();
  // How many rows the first rank with an overflow lacks, for the message.
  if (overflow_rank < kMaxRanks) {
    if (layout.token_major()) {
      if (threadIdx.x == 0) {
        for (int s = 0; s < ranks; ++s) overflow_rows += t.tokens[s * ranks + overflow_rank];
        overflow_rows -= static_cast<int>(pair_limit(layout));
      }
    } else {
      for (int e = threadIdx.x; e < experts; e += kPrepareThreads) {
        if (t.rank_of[e] != overflow_rank) continue;
        const std::int64_t room = row_end(layout, t.group[e]) - t.group[e];
        const std::int64_t over = t.total[e] - (room > 0 ? room : 0);
        if (over > 0) atomicAdd(&overflow_rows, static_cast<int>(over));
      }
    }
    __syncthreads();
  }
  Exchange exchange;
  exchange.refusing_rank = refusing_rank < kMaxRanks ? refusing_rank : -1;
  exchange.overflow_rank = overflow_rank < kMaxRanks ? overflow_rank : -1;
  exchange.overflow_rows = overflow_rows;
  exchange.refused = exchange.refusing_rank >= 0 || (exchange.overflow_rank >= 0 && !args.drop_overflow);
  return exchange;
}

// ---- Place ----------------------------------------------------------------------------------------------------------

/// The rank of a pair of which no row fits, written so that later kernels see no place: only its record is sent.
__device__ inline std::int32_t dropped_pair_to(int rank) { return -2 - rank; }

/// Gives one token's assignments to one rank their rows; returns the assignments that fit.
struct TokenPlacer {
  const PrepareArgs& args;
  const Tables& t;
  std::int64_t token;  // of the rank
  int token_in_tile;
  int num_sends = 0;
  int num_dropped = 0;
  int num_remote = 0;

  __device__ void place(int dst) {
    const DeviceGroup& group = args.group;
    const int ranks = group.num_ranks;
    const int top_k = args.handle.top_k;
    const DispatchLayout& layout = args.layout;
    const std::int32_t pair = t.base[dst] + place_in_tile(t.bitmap + dst * kTileWords, token_in_tile);
    const bool pair_fits = pair < pair_limit(layout);
    std::int32_t primary = -1;
    float weight = 0.0F;
    for (int position = 0; position < top_k; ++position) {
      const std::int64_t entry = token * top_k + position;
      const std::int32_t expert = args.handle.expert_ids[entry];
      if (expert == kNoExpert || t.rank_of[expert] != dst) continue;
      std::int32_t row = pair_fits ? pair : -1;
      if (!layout.token_major()) {
        row = t.base[ranks + expert] + place_in_tile(t.bitmap + (ranks + expert) * kTileWords, token_in_tile);
        if (row >= row_end(layout, t.group[expert])) row = -1;
      }
      args.handle.dst_row[entry] = row;
      if (row < 0) {
        ++num_dropped;
        atomicAdd(&group.outcome[ranks + expert], 1);
        continue;
      }
      if (primary < 0) primary = row;
      weight += args.handle.weights[entry];
      num_remote += dst != group.rank ? 1 : 0;
    }
    const std::int64_t slot = token * args.handle.sends_per_token + num_sends;
    if (primary < 0) {
      // In expert layouts the receiver has a place for the pair, whether any of its rows fit or not.
      if (layout.token_major()) return;
      args.handle.sends[slot] = SendPlace{dropped_pair_to(dst), -1, pair, -1};
      ++num_sends;
      return;
    }
    atomicAdd(&t.pairs[dst], 1);
    SendPlace send;
    send.dst_rank = dst;
    send.row = primary;
    send.pair = pair;
    send.stage = -1;
    if (dst != group.rank) {
      send.stage = pair;
      for (int s = 0; s < group.rank; ++s) send.stage -= t.tokens[s * ranks + dst];
      for (int r = 0; r < dst; ++r) send.stage += r != group.rank ? t.tokens[group.rank * ranks + r] : 0;
    }
    args.handle.sends[slot] = send;
    ++num_sends;
    args.handle.send_weights[slot] = weight;
  }
};

__device__ void place_tile(const PrepareArgs& args, const Tables& t, const Exchange& exchange, std::int64_t tile,
                           int tile_tokens) {
  const int top_k = args.handle.top_k;
  const int slots = args.handle.sends_per_token;
  int dropped = 0;
  int remote = 0;
  for (int i = threadIdx.x; i < tile_tokens; i += kPrepareThreads) {
    TokenPlacer placer{args, t, tile + i, i};
    const std::int64_t first = placer.token * top_k;
    for (int position = 0; position < top_k; ++position) args.handle.dst_row[first + position] = -1;
    if (!exchange.refused) {
      std::uint64_t ranks_left[2] = {0, 0};
      for (int position = 0; position < top_k; ++position) {
        const std::int32_t expert = args.handle.expert_ids[first + position];
        if (expert == kNoExpert) continue;
        const int dst = t.rank_of[expert];
        const std::uint64_t bit = std::uint64_t{1} << (dst & 63);
        if (args.layout.params().combine == CombineMode::kFlat && (ranks_left[dst >> 6] & bit) == 0) placer.place(dst);
        ranks_left[dst >> 6] |= bit;
      }
      if (args.layout.params().combine == CombineMode::kHierarchical) {
        for (int half = 0; half < 2; ++half) {
          for (; ranks_left[half] != 0; ranks_left[half] &= ranks_left[half] - 1) {
            placer.place(half * 64 + __ffsll(static_cast<long long>(ranks_left[half])) - 1);
          }
        }
      }
    }
    for (int slot = placer.num_sends; slot < slots; ++slot) {
      args.handle.sends[placer.token * slots + slot] = SendPlace{-1, -1, -1, -1};
    }
    dropped += placer.num_dropped;
    remote += placer.num_remote;
  }
  dropped = warp_sum(dropped);
  remote = warp_sum(remote);
  if ((threadIdx.x & 31) == 0) {
    if (dropped > 0) atomicAdd(reinterpret_cast<unsigned long long*>(&args.group.local->dropped), dropped);
    if (remote > 0) {
      atomicAdd(reinterpret_cast<unsigned long long*>(&args.group.local->sent_remote_assignments), remote);
    }
  }
}

/// Sends the records of a tile: consecutive threads write consecutive words.
__device__ void send_records(const PrepareArgs& args, const Tables& t, std::int64_t tile, int tile_tokens) {
  const DeviceGroup& group = args.group;
  const int top_k = args.handle.top_k;
  const int slots = args.handle.sends_per_token;
  const int words = 2 + 2 * top_k;
  const bool token_major = args.layout.token_major();
  for (int i = threadIdx.x; i < tile_tokens * slots * words; i += kPrepareThreads) {
    const int slot = i / words;
    const int word = i - slot * words;
    const SendPlace send = args.handle.sends[tile * slots + slot];
    if (send.dst_rank == -1) continue;
    const int dst = send.dst_rank >= 0 ? send.dst_rank : dropped_pair_to(send.dst_rank);
    const std::int64_t token = tile + slot / slots;
    std::uint32_t value = word == 0 ? static_cast<std::uint32_t>(group.rank) : static_cast<std::uint32_t>(token);
    if (word >= 2) {
      const int position = word - 2 < top_k ? word - 2 : word - 2 - top_k;
      const std::int64_t entry = token * top_k + position;
      const std::int32_t expert = args.handle.expert_ids[entry];
      const bool there = expert != kNoExpert && t.rank_of[expert] == dst;
      if (word - 2 < top_k) {
        const std::int32_t id = token_major ? expert - args.layout.partition().first_expert(dst)
                                            : args.handle.dst_row[entry];
        value = static_cast<std::uint32_t>(there ? id : -1);
      } else {
        value = there ? __float_as_uint(args.handle.weights[entry]) : 0U;
      }
    }
    std::byte* record = group.section(dst, BufferSection::kRecords) +
                        std::int64_t{send.pair} * args.layout.pair_record_bytes();
    reinterpret_cast<std::uint32_t*>(record)[word] = value;
  }
}

__device__ void place_tokens(const PrepareArgs& args, const Tables& t, const Exchange& exchange) {
  const Share share = block_share(args.handle.num_tokens);
  const int columns = args.group.num_ranks + args.group.control.num_experts;
  const bool one_tile = share.end - share.begin <= kTileTokens;
  bool bad = false;
  for (std::int64_t tile = share.begin; tile < share.end; tile += kTileTokens) {
    const int tile_tokens = static_cast<int>(min(std::int64_t{kTileTokens}, share.end - tile));
    if (!one_tile) mark_tile<false>(args, t, tile, tile_tokens, bad);  // else the bitmaps of the count are still there
    place_tile(args, t, exchange, tile, tile_tokens);
    __syncthreads();
    send_records(args, t, tile, tile_tokens);
    if (!one_tile) {
      for (int c = threadIdx.x; c < columns; c += kPrepareThreads) t.base[c] += tile_count(t, c);
      __syncthreads();
    }
  }
  __syncthreads();
  for (int d = threadIdx.x; d < args.group.num_ranks; d += kPrepareThreads) {
    if (t.pairs[d] > 0) atomicAdd(&args.group.outcome[d], t.pairs[d]);
  }
}

/// By the last block: tells every rank what became of this rank's assignments.
__device__ void send_outcome(const PrepareArgs& args) {
  const DeviceGroup& group = args.group;
  const int ranks = group.num_ranks;
  const ExpertPartition partition = args.layout.partition();
  for (int peer = 0; peer < ranks; ++peer) {
    std::int32_t* out = group.control_at<std::int32_t>(peer, group.control.outcomes_offset()) +
                        std::int64_t{group.rank} * group.control.outcome_entries();
    for (int d = threadIdx.x; d < ranks; d += kPrepareThreads) out[d] = __ldcg(&group.outcome[d]);
    for (int local = threadIdx.x; local < partition.num_local_experts(peer); local += kPrepareThreads) {
      out[ranks + local] = __ldcg(&group.outcome[ranks + partition.first_expert(peer) + local]);
    }
    if (threadIdx.x == 0) {
      out[ranks + group.control.max_local_experts()] = static_cast<std::int32_t>(__ldcg(&group.local->dropped));
    }
  }
  __threadfence_system();
  __syncthreads();
  for (int i = threadIdx.x; i < ranks + group.control.num_experts; i += kPrepareThreads) group.outcome[i] = 0;
}

// ---- Describe -------------------------------------------------------------------------------------------------------

/// What this rank receives, the same in all blocks.
struct Received {
  std::int32_t num_pairs;
  std::int32_t num_rows;
};

__device__ Received received(const PrepareArgs& args, const Tables& t, const Exchange& exchange) {
  const int ranks = args.group.num_ranks;
  Received r;
  std::int64_t pairs = 0;
  for (int s = 0; s < ranks; ++s) pairs += t.tokens[s * ranks + args.group.rank];
  r.num_pairs = exchange.refused ? 0 : clip(pairs, pair_limit(args.layout));
  r.num_rows = t.out_rows[args.group.rank];
  return r;
}

/// Totals that later kernels need, by one block.
__device__ void write_totals(const PrepareArgs& args, const Tables& t, const Exchange& exchange, const Received& mine) {
  const int ranks = args.group.num_ranks;
  const int rank = args.group.rank;
  HandleTotals& totals = *args.handle.totals;
  const std::int64_t limit = exchange.refused ? 0 : pair_limit(args.layout);
  for (int s = threadIdx.x; s <= ranks; s += kPrepareThreads) {
    std::int64_t begin = 0;
    for (int before = 0; before < s; ++before) begin += t.tokens[before * ranks + rank];
    totals.pair_begin[s] = clip(begin, limit);
    if (s == ranks) continue;
    std::int32_t stage = 0;
    for (int r = 0; r < rank; ++r) stage += r != s ? t.tokens[s * ranks + r] : 0;
    totals.stage_begin[s] = stage;
  }
  if (threadIdx.x == 0) {
    totals.num_pairs = mine.num_pairs;
    totals.num_rows = mine.num_rows;
    totals.refused = exchange.refused ? 1 : 0;
    if (args.layout.token_major()) totals.content_rows = mine.num_pairs;
  }
}

__device__ void describe_token_rows(const PrepareArgs& args, const Received& mine) {
  const int top_k = args.handle.top_k;
  const std::int64_t record_words = args.layout.pair_record_bytes() / 4;
  const auto* records =
      reinterpret_cast<const std::uint32_t*>(args.group.section(args.group.rank, BufferSection::kRecords));
  const std::int64_t first = std::int64_t{blockIdx.x} * kPrepareThreads + threadIdx.x;
  const std::int64_t step = std::int64_t{gridDim.x} * kPrepareThreads;
  for (std::int64_t i = first; i < std::int64_t{mine.num_rows} * top_k; i += step) {
    const std::int64_t row = i / top_k;
    const int position = static_cast<int>(i - row * top_k);
    const bool content = row < mine.num_pairs;
    const std::uint32_t* record = records + row * record_words;
    args.handle.local_expert_ids[i] = content ? static_cast<std::int32_t>(__ldcg(record + 2 + position)) : -1;
    args.handle.row_weights[i] = content ? __uint_as_float(__ldcg(record + 2 + top_k + position)) : 0.0F;
    if (position == 0) {
      args.handle.src_rank[row] = content ? static_cast<std::int32_t>(__ldcg(record)) : -1;
      args.handle.src_token[row] = content ? static_cast<std::int32_t>(__ldcg(record + 1)) : -1;
    }
  }
}

__device__ inline void describe_padding(const PrepareArgs& args, std::int64_t begin, std::int64_t end, int first,
                                        int step) {
  for (std::int64_t row = begin + first; row < end; row += step) {
    args.handle.src_rank[row] = -1;
    args.handle.src_token[row] = -1;
    args.handle.row_weights[row] = 0.0F;
  }
}

/// Rows of an expert of this rank that have a place.
__device__ inline std::int32_t kept_rows(const PrepareArgs& args, const Tables& t, const Exchange& exchange,
                                         int expert) {
  if (exchange.refused) return 0;
  const std::int64_t room = row_end(args.layout, t.group[expert]) - t.group[expert];
  return clip(t.total[expert], room > 0 ? room : 0);
}

__device__ void describe_expert_rows(const PrepareArgs& args, const Tables& t, const Exchange& exchange,
                                     const Received& mine) {
  const int top_k = args.handle.top_k;
  const ExpertPartition partition = args.layout.partition();
  const int first_expert = partition.first_expert(args.group.rank);
  const int num_local = partition.num_local_experts(args.group.rank);
  // Padding: behind each group, and behind the last one.
  const int warp = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  for (int local = warp; local <= num_local; local += static_cast<int>(gridDim.x) * kWarps) {
    std::int64_t begin = 0;
    std::int64_t end = mine.num_rows;
    if (local < num_local) {
      const int expert = first_expert + local;
      begin = std::int64_t{t.group[expert]} + kept_rows(args, t, exchange, expert);
      end = min(end, std::int64_t{t.group[expert]} + args.layout.group_rows(t.total[expert]));
    } else if (num_local > 0) {
      const int last = first_expert + num_local - 1;
      begin = std::int64_t{t.group[last]} + args.layout.group_rows(t.total[last]);
    }
    describe_padding(args, begin, end, static_cast<int>(threadIdx.x) & 31, 32);
  }
  const std::int64_t record_words = args.layout.pair_record_bytes() / 4;
  const auto* records =
      reinterpret_cast<const std::uint32_t*>(args.group.section(args.group.rank, BufferSection::kRecords));
  auto* copies = reinterpret_cast<std::uint32_t*>(args.handle.pair_records);
  const std::int64_t first = std::int64_t{blockIdx.x} * kPrepareThreads + threadIdx.x;
  const std::int64_t step = std::int64_t{gridDim.x} * kPrepareThreads;
  for (std::int64_t i = first; i < mine.num_pairs * record_words; i += step) {
    const std::int64_t pair = i / record_words;
    const int word = static_cast<int>(i - pair * record_words);
    const std::uint32_t* record = records + pair * record_words;
    const std::uint32_t value = __ldcg(record + word);
    copies[i] = value;
    if (word < 2 || word >= 2 + top_k) continue;
    const auto row = static_cast<std::int32_t>(value);
    if (row < 0) continue;
    args.handle.src_rank[row] = static_cast<std::int32_t>(__ldcg(record));
    args.handle.src_token[row] = static_cast<std::int32_t>(__ldcg(record + 1));
    args.handle.row_weights[row] = __uint_as_float(__ldcg(record + top_k + word));
  }
}

/// Counts per local expert, by the last block; returns (in thread 0) what the host is told.
__device__ void write_counts(const PrepareArgs& args, const Tables& t, const Exchange& exchange, const Received& mine,
                             std::uint32_t epoch) {
  const DeviceGroup& group = args.group;
  const int ranks = group.num_ranks;
  const ExpertPartition partition = args.layout.partition();
  const int first_expert = partition.first_expert(group.rank);
  const int num_local = partition.num_local_experts(group.rank);
  const bool token_major = args.layout.token_major();
  const auto* outcomes = group.control_at<const std::int32_t>(group.rank, group.control.outcomes_offset());
  const std::int32_t stride = group.control.outcome_entries();
  __shared__ int content_rows;
  __shared__ int dropped_here;
  if (threadIdx.x == 0) {
    content_rows = token_major ? mine.num_pairs : 0;
    dropped_here = 0;
  }
  __syncthreads();
  for (int local = threadIdx.x; local < num_local; local += kPrepareThreads) {
    const int expert = first_expert + local;
    std::int32_t dropped = 0;
    for (int s = 0; s < ranks; ++s) dropped += __ldcg(outcomes + s * stride + ranks + local);
    const std::int32_t kept = exchange.refused ? 0 : t.total[expert] - dropped;
    args.handle.expert_counts[local] = kept;
    args.handle.expert_dropped[local] = dropped;
    if (dropped > 0) atomicAdd(&dropped_here, dropped);
    if (token_major) continue;
    atomicAdd(&content_rows, kept);
    // Groups beyond the capacity are empty and begin at its end.
    const std::int64_t limit = mine.num_rows;
    args.handle.expert_begin[local] = min(std::int64_t{t.group[expert]}, limit);
    if (local == num_local - 1) {
      const std::int64_t begin = min(std::int64_t{t.group[expert]}, limit);
      args.handle.expert_begin[num_local] = min(begin + args.layout.group_rows(kept), limit);
    }
  }
  if (num_local == 0 && !token_major && threadIdx.x == 0) args.handle.expert_begin[0] = 0;
  Summary& summary = *args.summary;
  auto* pairs = reinterpret_cast<std::int32_t*>(args.summary + 1);
  std::int32_t* output_rows = pairs + ranks * ranks;
  std::int32_t* other_pairs = output_rows + ranks;
  for (int i = threadIdx.x; i < ranks * ranks; i += kPrepareThreads) {
    pairs[i] = __ldcg(outcomes + (i / ranks) * stride + i % ranks);
  }
  for (int r = threadIdx.x; r < ranks; r += kPrepareThreads) {
    output_rows[r] = t.out_rows[r];
    std::int32_t others = 0;
    for (int d = 0; d < ranks; ++d) others += d != r ? t.tokens[r * ranks + d] : 0;
    other_pairs[r] = others;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    args.handle.totals->content_rows = content_rows;
    summary.content_rows = content_rows;
    summary.num_rows = mine.num_rows;
    summary.padding_rows = mine.num_rows - content_rows;
    summary.sent_remote_assignments = __ldcg(&group.local->sent_remote_assignments);
    summary.dropped_by_this_rank = __ldcg(&group.local->dropped);
    summary.dropped_here = dropped_here;
    std::int64_t in_group = 0;
    for (int s = 0; s < ranks; ++s) in_group += __ldcg(outcomes + s * stride + ranks + group.control.max_local_experts());
    summary.dropped_in_group = in_group;
    Finding finding = Finding::kNone;
    summary.peer = -1;
    const unsigned long long bad_entry = __ldcg(&group.local->first_bad_entry);
    if (bad_entry != 0) {
      finding = Finding::kBadId;
      summary.a = static_cast<std::int64_t>(~bad_entry);
      summary.b = read_id(args, summary.a);
      if (summary.b >= 0 && summary.b < group.control.num_experts) finding = Finding::kRepeatedId;
    } else if (exchange.refusing_rank >= 0) {
      finding = Finding::kPeerRejected;
      summary.peer = exchange.refusing_rank;
    } else if (exchange.overflow_rank >= 0 && !args.drop_overflow) {
      finding = Finding::kOverflow;
      summary.peer = exchange.overflow_rank;
      summary.a = exchange.overflow_rows;
    }
    summary.finding = static_cast<std::uint32_t>(finding);
    group.local->first_bad_entry = 0;
    group.local->dropped = 0;
    group.local->sent_remote_assignments = 0;
    group.local->epoch = epoch;
  }
  __threadfence_system();
  __syncthreads();
  if (threadIdx.x == 0) *static_cast<volatile std::uint64_t*>(&summary.prepare_id) = args.prepare_id;
}

__global__ void __launch_bounds__(kPrepareThreads, 1) prepare_kernel(const __grid_constant__ PrepareArgs args) {
  extern __shared__ __align__(16) std::byte shared[];
  const DeviceGroup& group = args.group;
  if (has_failed(group)) return;
  const Tables t = carve(shared, group.num_ranks, group.control.num_experts);
  const auto epoch = static_cast<std::uint32_t>(group.local->epoch + 1);
  const CallContext call{&group, epoch, call_word(epoch, DeviceCall::kPrepare, args.handle.handle_id), kPhaseLayout};
  if (blockIdx.x == 0) announce(call);
  for (int e = threadIdx.x; e < group.control.num_experts; e += kPrepareThreads) {
    t.rank_of[e] = static_cast<std::uint8_t>(args.layout.partition().rank_of(e));
  }
  __syncthreads();
  count_and_tell(args, call, t);
  if (!wait_for_counts(call)) return;
  const Exchange exchange = compute_tables(args, t);
  const Received mine = received(args, t, exchange);
  if (blockIdx.x == 0) write_totals(args, t, exchange, mine);
  place_tokens(args, t, exchange);
  if (is_last_block(&group.local->blocks_sent)) {
    send_outcome(args);
    signal_done(call);
  }
  wait_all_done(call);
  __syncthreads();
  if (has_failed(group)) return;
  if (args.layout.token_major()) {
    describe_token_rows(args, mine);
  } else {
    describe_expert_rows(args, t, exchange, mine);
  }
  if (is_last_block(&group.local->blocks_done)) write_counts(args, t, exchange, mine, epoch);
}

}  // namespace

std::int64_t prepare_shared_bytes(int num_ranks, int num_experts) noexcept {
  return table_bytes(num_ranks, num_experts);
}

const void* prepare_kernel_address() noexcept { return reinterpret_cast<const void*>(&prepare_kernel); }

cudaError_t launch_prepare(const PrepareArgs& args, int num_blocks, cudaStream_t stream) {
  const auto bytes = static_cast<std::size_t>(prepare_shared_bytes(args.group.num_ranks, args.group.control.num_experts));
  prepare_kernel<<<num_blocks, kPrepareThreads, bytes, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace epistle::cuda
