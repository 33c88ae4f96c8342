// prepare, second part: every assignment of a block's tokens gets its row, and every pair its record.
//
// Positions within a tile come from bitmaps: the number of set bits before a token's bit is its place among the tile's
// rows of that column.
#pragma once

#include "dispatch/cuda/prepare_tables.cuh"

namespace epistle::cuda {

/// Tokens [begin, end) that a block counts and places.
struct Share {
  std::int64_t begin;
  std::int64_t end;
};
__device__ inline Share block_share(std::int64_t num_tokens) {
  const std::int64_t per_block = (num_tokens + gridDim.x - 1) / gridDim.x;
  const std::int64_t begin = min(num_tokens, per_block * blockIdx.x);
  return {begin, min(num_tokens, begin + per_block)};
}

__device__ inline std::int64_t read_id(const PrepareArgs& args, std::int64_t entry) {
  return args.ids_are_64_bit ? static_cast<const std::int64_t*>(args.expert_ids)[entry]
                             : static_cast<const std::int32_t*>(args.expert_ids)[entry];
}

/// Reads a tile into shared memory and sets its bitmaps. The first time it also checks the ids and fills the handle;
/// returns true in a thread that has seen a bad one.
template <bool kFirst>
__device__ bool read_tile(const PrepareArgs& args, const Tables& t, std::int64_t tile, int num_tokens) {
  const int ranks = args.group.num_ranks;
  const int experts = args.group.control.num_experts;
  const int top_k = args.handle.top_k;
  bool bad = false;
  for (int i = threadIdx.x; i < t.columns * t.words; i += kPrepareThreads) t.bitmap[i] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < num_tokens * top_k; i += kPrepareThreads) {
    const std::int64_t entry = tile * top_k + i;
    std::int64_t id = 0;
    float weight = 1.0F;
    if constexpr (kFirst) {
      id = read_id(args, entry);
      if (args.weights != nullptr) weight = args.weights[entry];
      if (id < kNoExpert || id >= experts) {
        bad = true;
        atomicMax(&args.group.local->first_bad_entry, ~static_cast<unsigned long long>(entry));
        id = kNoExpert;
      }
      args.handle.expert_ids[entry] = static_cast<std::int32_t>(id);
      args.handle.weights[entry] = weight;
    } else {
      id = args.handle.expert_ids[entry];
      weight = args.handle.weights[entry];
    }
    t.ids[i] = static_cast<std::int32_t>(id);
    t.weights[i] = weight;
    t.ranks[i] = id == kNoExpert ? kNoRank : t.rank_of[id];
    if (id == kNoExpert) continue;
    const int token = i / top_k;
    const std::uint32_t bit = 1U << (token & 31);
    std::uint32_t* words = t.bitmap + (token >> 5) * t.columns;
    const std::uint32_t old = atomicOr(&words[ranks + id], bit);
    if (kFirst && (old & bit) != 0) {
      bad = true;
      atomicMax(&args.group.local->first_bad_entry, ~static_cast<unsigned long long>(entry));
    }
    atomicOr(&words[t.rank_of[id]], bit);
  }
  __syncthreads();
  return bad;
}

/// Counts the bits of one column of a tile, and those before each word.
__device__ inline int count_column(const Tables& t, int column) {
  int count = 0;
  for (int w = 0; w < t.words; ++w) {
    t.before[w * t.columns + column] = static_cast<std::uint16_t>(count);
    count += __popc(t.bitmap[w * t.columns + column]);
  }
  return count;
}

/// How many tokens of the tile before `token` go to a column.
__device__ inline int place_in_tile(const Tables& t, int column, int token) {
  const int word = (token >> 5) * t.columns + column;
  return t.before[word] + __popc(t.bitmap[word] & ((1U << (token & 31)) - 1));
}

/// Counts this block's tokens; true when it has seen a bad id.
__device__ inline bool count_share(const PrepareArgs& args, const Tables& t) {
  const int columns = args.group.num_ranks + args.group.control.num_experts;
  bool bad = false;
  const Share share = block_share(args.handle.num_tokens);
  for (std::int64_t tile = share.begin; tile < share.end; tile += t.tile_tokens) {
    const int num_tokens = static_cast<int>(min(std::int64_t{t.tile_tokens}, share.end - tile));
    bad = read_tile<true>(args, t, tile, num_tokens) || bad;
    for (int c = threadIdx.x; c < columns; c += kPrepareThreads) t.counts[c] += count_column(t, c);
    __syncthreads();
  }
  return bad;
}

/// The rank of a pair of which no row fits, written so that later kernels see no place: only its record is sent.
__device__ inline std::int32_t dropped_pair_to(int rank) { return -2 - rank; }

/// Counts of what does not fit, per thread.
struct PlaceCounts {
  int dropped = 0;
  int remote = 0;
};

/// Rows of all assignments of a tile, one thread each.
__device__ inline void place_rows(const PrepareArgs& args, const Tables& t, const Exchange& exchange,
                                  std::int64_t tile, int num_tokens, PlaceCounts& counts) {
  const int ranks = args.group.num_ranks;
  const int top_k = args.handle.top_k;
  const bool token_major = args.layout.token_major();
  const std::int64_t limit = pair_limit(args.layout);
  for (int i = threadIdx.x; i < num_tokens * top_k; i += kPrepareThreads) {
    const int dst = t.ranks[i];
    std::int32_t row = -1;
    if (dst != kNoRank && !exchange.refused) {
      const std::int32_t expert = t.ids[i];
      const int column = token_major ? dst : ranks + expert;
      row = t.base[column] + place_in_tile(t, column, i / top_k);
      if (row >= (token_major ? limit : row_end(args.layout, t.group[expert]))) row = -1;
      if (row < 0) {
        ++counts.dropped;
        atomicAdd(&args.group.outcome[ranks + expert], 1);
      } else if (dst != args.group.rank) {
        ++counts.remote;
      }
    }
    t.rows[i] = row;
    args.handle.dst_row[tile * top_k + i] = row;
  }
}

/// Fills one slot of a token's sends: its rows at `dst`.
__device__ inline bool place_send(const PrepareArgs& args, const Tables& t, const Exchange& exchange,
                                  std::int64_t tile, int in_tile, int dst, int slot) {
  const int top_k = args.handle.top_k;
  std::int32_t primary = -1;
  float weight = 0.0F;
  for (int i = in_tile * top_k; i < (in_tile + 1) * top_k; ++i) {
    if (t.ranks[i] != dst || t.rows[i] < 0) continue;
    if (primary < 0) primary = t.rows[i];
    weight += t.weights[i];
  }
  // In expert layouts the receiver has a place for the pair, whether any of its rows fit or not.
  if (primary < 0 && args.layout.token_major()) return false;
  SendPlace send;
  send.dst_rank = primary >= 0 ? dst : dropped_pair_to(dst);
  send.row = primary;
  send.pair = t.base[dst] + place_in_tile(t, dst, in_tile);
  send.stage = dst != args.group.rank ? send.pair + t.stage[dst] : -1;
  const int slots = args.handle.sends_per_token;
  t.sends[in_tile * slots + slot] = make_int2(dst, send.pair);
  const std::int64_t place = (tile + in_tile) * slots + slot;
  args.handle.sends[place] = send;
  args.handle.send_weights[place] = weight;
  if (primary >= 0 && exchange.overflow_rank >= 0) atomicAdd(&args.group.outcome[dst], 1);
  return true;
}

__device__ inline void clear_slot(const PrepareArgs& args, const Tables& t, std::int64_t tile, int in_tile, int slot) {
  const int slots = args.handle.sends_per_token;
  t.sends[in_tile * slots + slot] = make_int2(-1, -1);
  args.handle.sends[(tile + in_tile) * slots + slot] = SendPlace{-1, -1, -1, -1};
}

/// The sends of a tile's tokens, ranks ascending: one thread per token and rank.
__device__ inline void place_sends_by_rank(const PrepareArgs& args, const Tables& t, const Exchange& exchange,
                                           std::int64_t tile, int num_tokens) {
  const int ranks = args.group.num_ranks;
  const int slots = args.handle.sends_per_token;
  for (int i = threadIdx.x; i < num_tokens * ranks; i += kPrepareThreads) {
    const int dst = i / num_tokens;
    const int in_tile = i - dst * num_tokens;
    const std::uint32_t* words = t.bitmap + (in_tile >> 5) * t.columns;
    const auto goes_to = [&](int rank) { return static_cast<int>(words[rank] >> (in_tile & 31) & 1U); };
    int slot = 0;
    for (int lower = 0; lower < dst; ++lower) slot += goes_to(lower);
    if (goes_to(dst) != 0 && (exchange.refused || !place_send(args, t, exchange, tile, in_tile, dst, slot))) {
      clear_slot(args, t, tile, in_tile, slot);
    }
    if (dst != ranks - 1) continue;
    for (slot += goes_to(dst); slot < slots; ++slot) clear_slot(args, t, tile, in_tile, slot);
  }
}

/// The sends of a tile's tokens, ranks in the order of their first appearance: one thread per token.
__device__ inline void place_sends_by_appearance(const PrepareArgs& args, const Tables& t, const Exchange& exchange,
                                                 std::int64_t tile, int num_tokens) {
  const int top_k = args.handle.top_k;
  for (int i = threadIdx.x; i < num_tokens; i += kPrepareThreads) {
    std::uint64_t seen[2] = {0, 0};
    int slot = 0;
    for (int position = 0; position < top_k && !exchange.refused; ++position) {
      const int dst = t.ranks[i * top_k + position];
      if (dst == kNoRank) continue;
      const std::uint64_t bit = std::uint64_t{1} << (dst & 63);
      if ((seen[dst >> 6] & bit) != 0) continue;
      seen[dst >> 6] |= bit;
      if (place_send(args, t, exchange, tile, i, dst, slot)) ++slot;
    }
    for (; slot < args.handle.sends_per_token; ++slot) clear_slot(args, t, tile, i, slot);
  }
}

/// Sends the records of a tile: consecutive threads write consecutive 8 bytes.
__device__ inline void send_records(const PrepareArgs& args, const Tables& t, std::int64_t tile, int num_tokens) {
  const auto top_k = static_cast<unsigned>(args.handle.top_k);
  const auto slots = static_cast<unsigned>(args.handle.sends_per_token);
  const unsigned units = 1 + top_k;
  const bool token_major = args.layout.token_major();
  const unsigned count = static_cast<unsigned>(num_tokens) * slots * units;
  // Exact division of numbers up to 2^20 by multiplication.
  const unsigned per_unit = 0xffffffffU / units + 1;
  const unsigned per_slot = 0xffffffffU / slots + 1;
  for (unsigned i = threadIdx.x; i < count; i += kPrepareThreads) {
    const unsigned slot = units > 1 ? __umulhi(i, per_unit) : i;
    const unsigned unit = i - slot * units;
    const int2 send = t.sends[slot];
    if (send.x < 0) continue;
    const unsigned in_tile = slots > 1 ? __umulhi(slot, per_slot) : slot;
    const unsigned first = in_tile * top_k;
    const auto word = [&](unsigned w) -> std::uint32_t {
      const bool is_weight = w >= top_k;
      const unsigned entry = first + (is_weight ? w - top_k : w);
      const bool there = t.ranks[entry] == send.x;
      if (is_weight) return there ? __float_as_uint(t.weights[entry]) : 0U;
      return there ? static_cast<std::uint32_t>(token_major ? t.ids[entry] - t.first[send.x] : t.rows[entry]) : ~0U;
    };
    uint2 value = make_uint2(static_cast<std::uint32_t>(args.group.rank), static_cast<std::uint32_t>(tile + in_tile));
    if (unit > 0) value = make_uint2(word(2 * unit - 2), word(2 * unit - 1));
    reinterpret_cast<uint2*>(t.records[send.x])[static_cast<unsigned>(send.y) * std::size_t{units} + unit] = value;
  }
}

__device__ inline void place_share(const PrepareArgs& args, const Tables& t, const Exchange& exchange) {
  const Share share = block_share(args.handle.num_tokens);
  const int columns = args.group.num_ranks + args.group.control.num_experts;
  const bool one_tile = share.end - share.begin <= t.tile_tokens;
  PlaceCounts counts;
  for (std::int64_t tile = share.begin; tile < share.end; tile += t.tile_tokens) {
    const int num_tokens = static_cast<int>(min(std::int64_t{t.tile_tokens}, share.end - tile));
    if (!one_tile) {  // else what counting left in shared memory is still right
      static_cast<void>(read_tile<false>(args, t, tile, num_tokens));
      for (int c = threadIdx.x; c < columns; c += kPrepareThreads) t.counts[c] = count_column(t, c);
      __syncthreads();
    }
    place_rows(args, t, exchange, tile, num_tokens, counts);
    __syncthreads();
    if (args.layout.params().combine == CombineMode::kFlat) {
      place_sends_by_appearance(args, t, exchange, tile, num_tokens);
    } else {
      place_sends_by_rank(args, t, exchange, tile, num_tokens);
    }
    __syncthreads();
    send_records(args, t, tile, num_tokens);
    if (!one_tile) {
      __syncthreads();
      for (int c = threadIdx.x; c < columns; c += kPrepareThreads) t.base[c] += t.counts[c];
      __syncthreads();
    }
  }
  if (exchange.overflow_rank < 0) return;
  const int dropped = __reduce_add_sync(0xffffffffU, counts.dropped);
  const int remote = __reduce_add_sync(0xffffffffU, counts.remote);
  if ((threadIdx.x & 31) != 0) return;
  if (dropped > 0) atomicAdd(reinterpret_cast<unsigned long long*>(&args.group.local->dropped), dropped);
  if (remote > 0) {
    atomicAdd(reinterpret_cast<unsigned long long*>(&args.group.local->sent_remote_assignments), remote);
  }
}

}  // namespace epistle::cuda
