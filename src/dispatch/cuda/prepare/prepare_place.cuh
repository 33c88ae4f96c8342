// prepare, second part: every assignment of a block's tokens gets its row, and every pair its record.
//
// Positions within a tile come from bitmaps: the number of set bits before a token's bit is its place among the tile's
// rows of that column.
#pragma once

#include "dispatch/cuda/prepare/prepare_tables.cuh"

namespace epistle::cuda {

/// Tokens [begin, end) that a block counts and places.
struct Share {
  std::int64_t begin;
  std::int64_t end;
};
/// In 32 bits, which hold any number of tokens: a division in 64 takes long.
__device__ inline std::uint32_t tokens_per_block(std::int64_t num_tokens) {
  return (static_cast<std::uint32_t>(num_tokens) + gridDim.x - 1) / gridDim.x;
}
__device__ inline Share block_share(std::int64_t num_tokens) {
  const std::uint32_t per_block = tokens_per_block(num_tokens);
  const std::int64_t begin = min(num_tokens, std::int64_t{per_block} * blockIdx.x);
  return {begin, min(num_tokens, begin + per_block)};
}

/// The first entries of a block's share, on their way while the block sets itself up; and how many tokens are routed.
/// The shares do not depend on that: what lies behind the routed tokens is read, but does not count.
struct EarlyEntries {
  static constexpr int kPerThread = 2;
  std::int32_t routed = 0;
  std::int64_t ids[kPerThread];
  float weights[kPerThread];

  template <int kThreads>
  __device__ void load(const PrepareArgs& args) {
    const auto num_tokens = static_cast<std::int32_t>(args.handle.num_tokens);
    // The only place that reads it: every block sees the same, because the stream changes nothing while prepare runs.
    routed = args.num_tokens != nullptr ? __ldcg(args.num_tokens) : num_tokens;
    const Share share = block_share(num_tokens);
    const int top_k = args.handle.top_k;
    const int count = static_cast<int>(share.end - share.begin) * top_k;
    const bool dense = args.id_stride == top_k && (args.weights == nullptr || args.weight_stride == top_k);
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      const int i = static_cast<int>(threadIdx.x) + j * kThreads;
      const bool inside = i < count;
      const int token = dense ? 0 : i / top_k;
      const std::int64_t row = share.begin + token;
      const int position = i - token * top_k;
      ids[j] = inside ? read_id(args, row * args.id_stride + position) : kNoExpert;
      weights[j] = inside && args.weights != nullptr ? args.weights[row * args.weight_stride + position] : 1.0F;
    }
    routed = max(0, min(routed, num_tokens));
  }
};

/// A rank's bitmap is that of all its experts together: one warp for each word.
template <int kThreads = kPrepareThreads>
__device__ inline void mark_ranks(const PrepareArgs& args, const Tables& t) {
  const int ranks = args.group.num_ranks;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  for (int i = static_cast<int>(threadIdx.x) / 32; i < ranks * t.words; i += (kThreads / 32)) {
    const int word = i / ranks;
    const int rank = i - word * ranks;
    const int end = rank + 1 < ranks ? t.first[rank + 1] : args.group.control.num_experts;
    std::uint32_t bits = 0;
    for (int e = t.first[rank] + lane; e < end; e += 32) bits |= t.bitmap[word * t.columns + ranks + e];
    bits = __reduce_or_sync(0xffffffffU, bits);
    if (lane == 0) t.bitmap[word * t.columns + rank] = bits;
  }
}

/// Whether a column is that of an expert of a rank that is left out.
__device__ inline bool is_lost_id(const PrepareArgs& args, const Tables& t, std::int64_t column) {
  return args.group.num_masked != 0 && column != kNoExpert && args.group.is_masked(t.rank_of[column]);
}

/// Takes their bits back: they were needed to see whether an id stands twice in a token.
template <int kThreads = kPrepareThreads>
__device__ inline void leave_out_masked(const PrepareArgs& args, const Tables& t) {
  const int ranks = args.group.num_ranks;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < t.columns * t.words; i += kThreads) {
    const int expert = i % t.columns - ranks;
    if (expert >= 0 && is_lost_id(args, t, expert)) t.bitmap[i] = 0;
  }
  __syncthreads();
}

/// Reads a tile into shared memory and sets its bitmaps. The first time it also checks the ids and fills the handle;
/// returns true in a thread that has seen a bad one. kPlaced: ids name experts whose slots are to be chosen.
template <bool kFirst, bool kPlaced, int kThreads = kPrepareThreads>
__device__ bool read_tile(const PrepareArgs& args, const Tables& t, std::int64_t tile, int num_tokens,
                          const EarlyEntries* early) {
  const int ranks = args.group.num_ranks;
  const int top_k = args.handle.top_k;
  SlotChooser chooser;
  if constexpr (kFirst && kPlaced) chooser = slot_chooser(args);
  bool bad = false;
#pragma unroll 1
  for (int i = threadIdx.x; i < t.columns * t.words; i += kThreads) t.bitmap[i] = 0;
  __syncthreads();
  const unsigned per_top_k = 0xffffffffU / static_cast<unsigned>(top_k) + 1;
  int round = 0;
  for (int i = threadIdx.x; i < num_tokens * top_k; i += kThreads, ++round) {
    const std::int64_t entry = tile * top_k + i;
    const auto token = static_cast<int>(top_k > 1 ? __umulhi(static_cast<unsigned>(i), per_top_k) : i);
    const int position = i - token * top_k;
    std::int64_t id = kNoExpert;
    float weight = 1.0F;
    bool is_lost = false;
    if constexpr (kFirst) {
      const bool routed = tile + token < *t.routed;
      if (early != nullptr && round < EarlyEntries::kPerThread) {
        id = round == 0 ? early->ids[0] : early->ids[1];
        weight = round == 0 ? early->weights[0] : early->weights[1];
      } else if (routed) {
        id = read_id(args, (tile + token) * args.id_stride + position);
        if (args.weights != nullptr) weight = args.weights[(tile + token) * args.weight_stride + position];
      }
      if (!routed) id = kNoExpert;
      if (id < kNoExpert || id >= args.num_experts) {
        bad = true;
        atomicMax(&args.group.local->first_bad_entry, ~static_cast<unsigned long long>(entry));
        id = kNoExpert;
      }
      if constexpr (kPlaced) {
        if (id != kNoExpert) id = chooser.slot_of(static_cast<std::int32_t>(id), tile + token);
      }
      is_lost = is_lost_id(args, t, id);
      args.handle.expert_ids[entry] = is_lost ? kNoExpert : static_cast<std::int32_t>(id);
      args.handle.weights[entry] = weight;
    } else {
      id = args.handle.expert_ids[entry];
      weight = args.handle.weights[entry];
    }
    const int at = t.at(token, position);
    t.ids[at] = is_lost ? kNoExpert : static_cast<std::int32_t>(id);
    t.weights[at] = weight;
    t.ranks[at] = id == kNoExpert || is_lost ? kNoRank : t.rank_of[id];
    if (id == kNoExpert) continue;
    const std::uint32_t bit = 1U << (token & 31);
    const std::uint32_t old = atomicOr(&t.bitmap[(token >> 5) * t.columns + ranks + id], bit);
    if (kFirst && (old & bit) != 0) {
      bad = true;
      atomicMax(&args.group.local->first_bad_entry, ~static_cast<unsigned long long>(entry));
    }
  }
  __syncthreads();
  if (kFirst && args.group.num_masked != 0) leave_out_masked<kThreads>(args, t);
  mark_ranks<kThreads>(args, t);
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
template <bool kPlaced, int kThreads = kPrepareThreads>
__device__ inline bool count_share(const PrepareArgs& args, const Tables& t, const EarlyEntries& early) {
  const int columns = args.group.num_ranks + args.group.control.num_experts;
  bool bad = false;
  const Share share = block_share(args.handle.num_tokens);
  for (std::int64_t tile = share.begin; tile < share.end; tile += t.tile_tokens) {
    const int num_tokens = static_cast<int>(min(std::int64_t{t.tile_tokens}, share.end - tile));
    bad = read_tile<true, kPlaced, kThreads>(args, t, tile, num_tokens, tile == share.begin ? &early : nullptr) || bad;
#pragma unroll 1
    for (int c = threadIdx.x; c < columns; c += kThreads) t.counts[c] += count_column(t, c);
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
template <int kThreads = kPrepareThreads>
__device__ inline void place_rows(const PrepareArgs& args, const Tables& t, const Exchange& exchange, std::int64_t tile,
                                  int num_tokens, PlaceCounts& counts) {
  const int ranks = args.group.num_ranks;
  const int top_k = args.handle.top_k;
  const bool token_major = args.layout.token_major();
  const std::int64_t limit = pair_limit(args.layout);
  const unsigned per_top_k = 0xffffffffU / static_cast<unsigned>(top_k) + 1;
  for (int i = threadIdx.x; i < num_tokens * top_k; i += kThreads) {
    const auto token = static_cast<int>(top_k > 1 ? __umulhi(static_cast<unsigned>(i), per_top_k) : i);
    const int at = t.at(token, i - token * top_k);
    const int dst = t.ranks[at];
    std::int32_t row = -1;
    if (dst != kNoRank && !exchange.refused) {
      const std::int32_t expert = t.ids[at];
      const int column = token_major ? dst : ranks + expert;
      row = t.base[column] + place_in_tile(t, column, token);
      if (row >= (token_major ? limit : row_end(args.layout, t.group[expert]))) row = -1;
      if (row < 0) {
        ++counts.dropped;
        atomicAdd(&args.group.outcome[ranks + expert], 1);
      } else if (dst != args.group.rank) {
        ++counts.remote;
      }
    }
    t.rows[at] = row;
    args.handle.dst_row[tile * top_k + i] = row;
  }
}

/// Fills in one of a token's sends, the `nth`: its rows at `dst`.
__device__ inline bool place_send(const PrepareArgs& args, const Tables& t, const Exchange& exchange, std::int64_t tile,
                                  int in_tile, int dst, int nth) {
  const int top_k = args.handle.top_k;
  const bool token_major = args.layout.token_major();
  const std::int32_t pair = t.base[dst] + place_in_tile(t, dst, in_tile);
  if (token_major && pair >= pair_limit(args.layout)) return false;
  std::int32_t primary = token_major ? pair : -1;
  float weight = 0.0F;
  for (int position = 0; position < top_k; ++position) {
    const int at = t.at(in_tile, position);
    if (t.ranks[at] != dst || (!token_major && t.rows[at] < 0)) continue;
    if (primary < 0) primary = t.rows[at];
    weight += t.weights[at];
  }
  // In expert layouts the receiver has a place for the pair, whether any of its rows fit or not.
  SendPlace send;
  send.dst_rank = primary >= 0 ? dst : dropped_pair_to(dst);
  send.row = primary;
  send.pair = pair;
  send.stage = dst != args.group.rank ? send.pair + t.stage[dst] : -1;
  const int num_sends = args.handle.sends_per_token;
  t.sends[in_tile * num_sends + nth] = make_int2(dst, send.pair);
  const std::int64_t place = (tile + in_tile) * num_sends + nth;
  args.handle.sends[place] = send;
  args.handle.send_weights[place] = weight;
  if (primary >= 0 && exchange.overflow_rank >= 0) atomicAdd(&args.group.outcome[dst], 1);
  return true;
}

__device__ inline void clear_send(const PrepareArgs& args, const Tables& t, std::int64_t tile, int in_tile, int nth) {
  const int num_sends = args.handle.sends_per_token;
  t.sends[in_tile * num_sends + nth] = make_int2(-1, -1);
  args.handle.sends[(tile + in_tile) * num_sends + nth] = SendPlace{-1, -1, -1, -1};
}

/// The sends of a tile's tokens, ranks ascending: one thread per token and rank.
template <int kThreads = kPrepareThreads>
__device__ inline void place_sends_by_rank(const PrepareArgs& args, const Tables& t, const Exchange& exchange,
                                           std::int64_t tile, int num_tokens) {
  const int ranks = args.group.num_ranks;
  const int num_sends = args.handle.sends_per_token;
  for (int i = threadIdx.x; i < num_tokens * ranks; i += kThreads) {
    const int dst = i / num_tokens;
    const int in_tile = i - dst * num_tokens;
    const std::uint32_t* words = t.bitmap + (in_tile >> 5) * t.columns;
    const auto goes_to = [&](int rank) { return static_cast<int>(words[rank] >> (in_tile & 31) & 1U); };
    int nth = 0;
    for (int lower = 0; lower < dst; ++lower) nth += goes_to(lower);
    if (goes_to(dst) != 0 && (exchange.refused || !place_send(args, t, exchange, tile, in_tile, dst, nth))) {
      clear_send(args, t, tile, in_tile, nth);
    }
    if (dst != ranks - 1) continue;
    for (nth += goes_to(dst); nth < num_sends; ++nth) clear_send(args, t, tile, in_tile, nth);
  }
}

/// The ranks that a walk over a token's places has met.
class SeenRanks {
 public:
  /// False when the rank is in it already.
  __device__ bool add(int rank) {
    static_assert(kMaxRanks <= 128);
    std::uint64_t& bits = rank < 64 ? low_ : high_;
    const std::uint64_t bit = std::uint64_t{1} << (rank & 63);
    const bool is_new = (bits & bit) == 0;
    bits |= bit;
    return is_new;
  }

 private:
  std::uint64_t low_ = 0;
  std::uint64_t high_ = 0;
};

/// The sends of a tile's tokens, ranks in the order of their first appearance: one thread per token.
template <int kThreads = kPrepareThreads>
__device__ inline void place_sends_by_appearance(const PrepareArgs& args, const Tables& t, const Exchange& exchange,
                                                 std::int64_t tile, int num_tokens) {
  const int top_k = args.handle.top_k;
  for (int i = threadIdx.x; i < num_tokens; i += kThreads) {
    SeenRanks seen;
    int nth = 0;
    for (int position = 0; position < top_k && !exchange.refused; ++position) {
      const int dst = t.ranks[t.at(i, position)];
      if (dst == kNoRank || !seen.add(dst)) continue;
      if (place_send(args, t, exchange, tile, i, dst, nth)) ++nth;
    }
    for (; nth < args.handle.sends_per_token; ++nth) clear_send(args, t, tile, i, nth);
  }
}

/// The sends of a tile's tokens, ranks in the order of the last place that each has: one thread per place, so that the
/// threads of a token share out its ranks. A rank is served by the thread of its last place that has a row; in
/// expert layouts a rank none of whose rows fit comes behind the others, because its record is sent all the same.
template <int kThreads = kPrepareThreads>
__device__ inline void place_sends_by_last_place(const PrepareArgs& args, const Tables& t, const Exchange& exchange,
                                                 std::int64_t tile, int num_tokens) {
  const int top_k = args.handle.top_k;
  const int num_sends = args.handle.sends_per_token;
  const bool token_major = args.layout.token_major();
  const bool drops_rows = exchange.overflow_rank >= 0 && !token_major;
  const unsigned per_top_k = 0xffffffffU / static_cast<unsigned>(top_k) + 1;
  for (int i = threadIdx.x; i < num_tokens * top_k; i += kThreads) {
    const auto token = static_cast<int>(top_k > 1 ? __umulhi(static_cast<unsigned>(i), per_top_k) : i);
    const int position = i - token * top_k;
    // From behind, so that the first place that is met of a rank is its last one.
    SeenRanks seen;
    int num_ranks = 0;
    int num_before = 0;  // of these, ranks whose last place is before this thread's
    bool is_last = false;
    for (int other = top_k - 1; other >= 0 && !exchange.refused; --other) {
      const int at = t.at(token, other);
      const int rank = t.ranks[at];
      if (rank == kNoRank || (drops_rows && t.rows[at] < 0) || !seen.add(rank)) continue;
      ++num_ranks;
      if (other < position) ++num_before;
      if (other == position) is_last = true;
    }
    if (is_last) {
      const int dst = t.ranks[t.at(token, position)];
      if (!place_send(args, t, exchange, tile, token, dst, num_before)) clear_send(args, t, tile, token, num_before);
    }
    if (position != 0) continue;
    for (int other = 0; other < top_k && drops_rows && !exchange.refused; ++other) {
      const int dst = t.ranks[t.at(token, other)];
      if (dst == kNoRank || !seen.add(dst)) continue;
      static_cast<void>(place_send(args, t, exchange, tile, token, dst, num_ranks++));
    }
    for (int nth = num_ranks; nth < num_sends; ++nth) clear_send(args, t, tile, token, nth);
  }
}

/// Sends the records of a tile. A warp serves several records at a time, a lane always the same 8 bytes of them;
/// consecutive lanes write consecutive bytes.
template <int kThreads = kPrepareThreads>
__device__ inline void send_records(const PrepareArgs& args, const Tables& t, std::int64_t tile, int num_tokens) {
  const int top_k = args.handle.top_k;
  const int num_sends = args.handle.sends_per_token;
  const int units = 1 + top_k;
  const int lanes = units < 32 ? units : 32;
  const int per_warp = 32 / lanes;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int record = lane / lanes;  // of those that the warp serves at a time
  if (record >= per_warp) return;
  const bool token_major = args.layout.token_major();
  const unsigned per_token = 0xffffffffU / static_cast<unsigned>(num_sends) + 1;
  const int step = (kThreads / 32) * per_warp;
  for (int first_unit = lane - record * lanes; first_unit < units; first_unit += lanes) {
    // The two words of this unit: a top-k position, and whether it is the id or the weight; unit 0 is the header.
    const int w0 = 2 * first_unit - 2;
    const int w1 = w0 + 1;
    const int p0 = w0 < top_k ? w0 : w0 - top_k;
    const int p1 = w1 < top_k ? w1 : w1 - top_k;
    for (int nth = (static_cast<int>(threadIdx.x) / 32) * per_warp + record; nth < num_tokens * num_sends;
         nth += step) {
      const int2 send = t.sends[nth];
      if (send.x < 0) continue;
      const auto in_tile = static_cast<int>(num_sends > 1 ? __umulhi(static_cast<unsigned>(nth), per_token) : nth);
      uint2 value = make_uint2(static_cast<std::uint32_t>(args.group.rank), static_cast<std::uint32_t>(tile + in_tile));
      if (first_unit > 0) {
        const auto word = [&](int w, int entry) -> std::uint32_t {
          const bool there = t.ranks[entry] == send.x;
          if (w >= top_k) return there ? __float_as_uint(t.weights[entry]) : 0U;
          const std::int32_t id = token_major ? t.ids[entry] - t.first[send.x] : t.rows[entry];
          return there ? static_cast<std::uint32_t>(id) : ~0U;
        };
        value = make_uint2(word(w0, t.at(in_tile, p0)), word(w1, t.at(in_tile, p1)));
      }
      reinterpret_cast<uint2*>(
          t.records[send.x])[static_cast<unsigned>(send.y) * std::size_t{static_cast<unsigned>(units)} + first_unit] =
          value;
    }
  }
}

/// What stands in shared memory for the tile at hand: where it begins, and whether it is the only one of the share.
struct Tile {
  std::int64_t begin;
  int num_tokens;
  bool only;
};

/// Calls `step(tile)` for every tile of this block's share, with its bitmaps in place. Where there is only one, what
/// counting left in shared memory is still right.
template <int kThreads = kPrepareThreads, typename Step>
__device__ inline void for_each_tile(const PrepareArgs& args, const Tables& t, const Step& step) {
  const Share share = block_share(args.handle.num_tokens);
  const bool only = share.end - share.begin <= t.tile_tokens;
  for (std::int64_t begin = share.begin; begin < share.end; begin += t.tile_tokens) {
    const int num_tokens = static_cast<int>(min(std::int64_t{t.tile_tokens}, share.end - begin));
    if (!only) {
      static_cast<void>(read_tile<false, false, kThreads>(args, t, begin, num_tokens, nullptr));
      for (int c = threadIdx.x; c < t.columns; c += kThreads) t.counts[c] = count_column(t, c);
      __syncthreads();
    }
    step(Tile{begin, num_tokens, only});
    if (only) continue;
    __syncthreads();
    for (int c = threadIdx.x; c < t.columns; c += kThreads) t.base[c] += t.counts[c];
    __syncthreads();
  }
}

/// Places for everything a tile sends. In token_major the sends follow from the bitmaps alone; expert rows come first.
template <int kThreads = kPrepareThreads>
__device__ inline void place_tile(const PrepareArgs& args, const Tables& t, const Exchange& exchange, const Tile& tile,
                                  PlaceCounts& counts) {
  if (!args.layout.token_major()) {
    place_rows<kThreads>(args, t, exchange, tile.begin, tile.num_tokens, counts);
    __syncthreads();
  }
  switch (args.layout.params().order) {
    case SumOrder::kHierarchical:
    case SumOrder::kDomains:
      return place_sends_by_rank<kThreads>(args, t, exchange, tile.begin, tile.num_tokens);
    case SumOrder::kFlat:
      return place_sends_by_appearance<kThreads>(args, t, exchange, tile.begin, tile.num_tokens);
    case SumOrder::kDeepEpV2:
      return place_sends_by_last_place<kThreads>(args, t, exchange, tile.begin, tile.num_tokens);
  }
}

/// The rows of this block have their places; the call ends for the next kernel when those of all blocks have.
__device__ inline void tell_placed(const PrepareArgs& args, const CallContext& call, bool is_void) {
  LocalState& local = *call.group->local;
  __syncthreads();
  if (threadIdx.x != 0) return;
  fence_device();
  *static_cast<volatile std::uint64_t*>(&local.placed[blockIdx.x]) =
      call_word(call.epoch, is_void ? DeviceCall::kRejected : args.call, args.handle.handle_id);
  if (atomicAdd(&local.blocks_placed, 1U) != gridDim.x - 1) return;
  local.blocks_placed = 0;
  local.epoch = call.epoch;
}

/// The rest of a tile: what a dispatch does not wait for.
template <int kThreads = kPrepareThreads>
__device__ inline void record_tile(const PrepareArgs& args, const Tables& t, const Exchange& exchange, const Tile& tile,
                                   PlaceCounts& counts) {
  if (args.layout.token_major()) place_rows<kThreads>(args, t, exchange, tile.begin, tile.num_tokens, counts);
  __syncthreads();
  send_records<kThreads>(args, t, tile.begin, tile.num_tokens);
}

__device__ inline void add_counts(const PrepareArgs& args, const PlaceCounts& counts) {
  const int dropped = __reduce_add_sync(0xffffffffU, counts.dropped);
  const int remote = __reduce_add_sync(0xffffffffU, counts.remote);
  if ((threadIdx.x & 31) != 0) return;
  if (dropped > 0) atomicAdd(reinterpret_cast<unsigned long long*>(&args.group.local->dropped), dropped);
  if (remote > 0) {
    atomicAdd(reinterpret_cast<unsigned long long*>(&args.group.local->sent_remote_assignments), remote);
  }
}

}  // namespace epistle::cuda
