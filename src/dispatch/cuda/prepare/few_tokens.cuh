// prepare where all ranks have few tokens: one exchange, of tokens.
//
// Every block tells all ranks which of its tokens go where, a bit for each, and sends each receiver a record of what
// the token brings along, to a place that only its number decides. The bits of all ranks give everybody the places of
// its rows, and the receiver those of the rows that it describes. Nothing is signalled: every word carries the epoch.
//
// Where a rank tells counts instead (it has many tokens), is in another call, has a bad id, or rows do not fit
// anywhere, all ranks find that in the same words, and go on as if they had many tokens.
#pragma once

#include "dispatch/cuda/device/rows.cuh"
#include "dispatch/cuda/engine/few_launch.hpp"
#include "dispatch/cuda/prepare/prepare_describe.cuh"
#include "dispatch/cuda/prepare/prepare_place.cuh"

namespace epistle::cuda {

/// With this choice of a buffer, of which prepare uses none, a rank says that it tells tokens.
inline constexpr std::int32_t kTellsTokens = 1;

/// Half of what many tokens take: every warp issues all that is not done by threads that have a token, and with 64
/// tokens of eight experts in a block these are as many.
inline constexpr int kFewThreads = 512;
inline constexpr int kFewWarps = kFewThreads / 32;

static_assert(FewTokens::kMaxBlocks == kMaxPrepareBlocks);
static_assert(FewTokens::kMaxPerBlock == kMaxTileTokens, "the tokens of a block are one tile");
static_assert(FewTokens::kMaxRanks <= 32 && FewTokens::kMaxRanks <= kFewWarps, "a lane and a warp for each rank");

/// What all threads of a block know of all tokens.
struct FewTables {
  std::uint32_t bits[FewTokens::kMaxRanks][FewTokens::kMaxWords];    ///< by source: its tokens that come here
  std::uint16_t before[FewTokens::kMaxRanks][FewTokens::kMaxWords];  ///< bits in the words before
  std::int32_t earlier[FewTokens::kMaxRanks];     ///< by destination: tokens of this rank's earlier blocks
  std::int32_t pair_begin[FewTokens::kMaxRanks];  ///< by source
  FewHeader shape[FewTokens::kMaxRanks];          ///< by source
  Divider words_per_block[FewTokens::kMaxRanks];  ///< by source
  Divider words;                                  ///< of the source that has most
  std::int32_t remote;  ///< assignments to other ranks' experts, of this block and later of all
};

/// The parts of one copy of the exchange, in the memory of one rank.
struct FewParts {
  std::uint64_t* headers;
  std::uint64_t* bits;
  std::uint64_t* counts;
  std::byte* records;

  __device__ FewParts(const FewPrepareArgs& args, std::uint32_t epoch, int rank) {
    const FewTokens& few = args.few;
    std::byte* const copy =
        args.group.control_at<std::byte>(rank, static_cast<std::int64_t>(epoch % FewTokens::kCopies) * few.copy_bytes);
    headers = reinterpret_cast<std::uint64_t*>(copy + few.headers);
    bits = reinterpret_cast<std::uint64_t*>(copy + few.bits);
    counts = reinterpret_cast<std::uint64_t*>(copy + few.counts);
    records = copy + few.records;
  }
};

// ---- Telling --------------------------------------------------------------------------------------------------------

__device__ inline std::uint64_t tagged(const CallContext& call, std::uint32_t value) {
  return (std::uint64_t{call.epoch} << 32) | value;
}

/// Which tokens of this block go where, to all ranks.
__device__ inline void tell_bits(const FewPrepareArgs& args, const CallContext& call, const Tables& t,
                                 const FewHeader& header, bool empty) {
  const int ranks = args.group.num_ranks;
  const int rank = args.group.rank;
  const int block = static_cast<int>(blockIdx.x);
  const int words = header.words_per_block();
  const int per_peer = 1 + ranks * words;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < ranks * per_peer; i += kFewThreads) {
    const int peer = i / per_peer;
    const int what = i - peer * per_peer - 1;
    const FewParts parts(args, call.epoch, peer);
    if (what < 0) {
      store_relaxed(parts.headers + rank * FewTokens::kMaxBlocks + block, tagged(call, header.word()));
      continue;
    }
    const int word = what / ranks;
    const int dst = what - word * ranks;
    store_relaxed(parts.bits + (rank * ranks + dst) * FewTokens::kMaxWords + block * words + word,
                  tagged(call, empty ? 0U : t.bitmap[word * t.columns + dst]));
  }
}

/// What the tokens of this block bring along: the experts of each receiver, counted from its first one, and their
/// weights. A lane has one unit; consecutive lanes write consecutive bytes.
__device__ inline void tell_records(const FewPrepareArgs& args, const CallContext& call, const Tables& t,
                                    const Share& share) {
  const int ranks = args.group.num_ranks;
  const int top_k = args.handle.top_k;
  const std::uint32_t units = args.few.units.divisor();
  const auto num_tokens = static_cast<unsigned>(share.end - share.begin);
  const unsigned per_rank = num_tokens * units;
#pragma unroll 1
  for (unsigned i = threadIdx.x; i < per_rank * static_cast<unsigned>(ranks); i += kFewThreads) {
    int dst = 0;
    unsigned rest = i;
    for (; rest >= per_rank; rest -= per_rank) ++dst;
    const auto token = static_cast<int>(args.few.units.divide(rest));
    const auto unit = static_cast<int>(rest - static_cast<unsigned>(token) * units);
    if ((t.bitmap[(token >> 5) * t.columns + dst] >> (token & 31) & 1U) == 0) continue;
    uint4 record = make_uint4(call.epoch, 0, 0, 0);
    const auto expert_at = [&](int position, std::uint32_t& weight) -> std::uint32_t {
      const int at = t.at(token, position);
      if (position >= top_k || t.ranks[at] != dst) return FewTokens::kNoExpert;
      weight = __float_as_uint(t.weights[at]);
      return static_cast<std::uint32_t>(t.ids[at] - t.first[dst]);
    };
    record.y = expert_at(2 * unit, record.z);
    record.y |= expert_at(2 * unit + 1, record.w) << 16;
    const FewParts parts(args, call.epoch, dst);
    const std::int64_t at = (std::int64_t{args.group.rank} * args.few.max_tokens + share.begin + token) * units + unit;
    store_whole(parts.records + at * FewTokens::kUnitBytes, record);
  }
}

/// How many tokens of this block each expert gets, to its rank. By the last threads: the first ones have told more.
__device__ inline void tell_expert_counts(const FewPrepareArgs& args, const CallContext& call, const Tables& t,
                                          FewTables& f) {
  const int rank = args.group.rank;
  const int experts = args.group.control.num_experts;
  const std::int64_t block = std::int64_t{rank} * FewTokens::kMaxBlocks + blockIdx.x;
  int remote = 0;
#pragma unroll 1
  for (int e = kFewThreads - 1 - static_cast<int>(threadIdx.x); e < experts; e += kFewThreads) {
    const int dst = t.rank_of[e];
    const int count = t.counts[args.group.num_ranks + e];
    const FewParts parts(args, call.epoch, dst);
    store_relaxed(parts.counts + block * args.few.counters + e - t.first[dst],
                  tagged(call, static_cast<std::uint32_t>(count)));
    if (dst != rank) remote += count;
  }
  remote = __reduce_add_sync(0xffffffffU, remote);
  if ((threadIdx.x & 31) == 0 && remote > 0) atomicAdd(&f.remote, remote);
}

// ---- Hearing --------------------------------------------------------------------------------------------------------

/// The slow part of hear(). Returns what is there when the source turns out not to tell it.
__device__ __noinline__ inline std::uint64_t poll_few(const CallContext& call, int source, const std::uint64_t* at) {
  const std::uint64_t start_ns = now_ns();
  for (std::uint32_t polls = 1;; ++polls) {
    const std::uint64_t word = load_relaxed(at);
    if (epoch_of(word) == call.epoch) return word;
    const std::uint64_t theirs = load_relaxed(ready_flag(call, source));
    const bool tells_tokens = same_but_choices(theirs, call.announced) && buffer_of(theirs) == kTellsTokens;
    if (epoch_of(theirs) == call.epoch && !tells_tokens) return word;
    if (polls % kPollsPerLook == 0 && gives_up(call, source, start_ns, polls)) return word;
  }
}

/// A word of this call, of which `seen` has been seen. `ok` becomes false where it does not come.
__device__ inline std::uint32_t hear(const CallContext& call, int source, const std::uint64_t* at, std::uint64_t seen,
                                     bool& ok) {
  if (epoch_of(seen) != call.epoch) {
    if (ok) seen = poll_few(call, source, at);
    ok = ok && epoch_of(seen) == call.epoch;
  }
  return static_cast<std::uint32_t>(seen);
}

/// The bits of all tokens of all ranks, a warp for each pair of ranks: how many go, and where this block's and this
/// rank's begin. False in a thread that has not heard all.
__device__ inline bool hear_bits(const FewPrepareArgs& args, const CallContext& call, const Tables& t, FewTables& f) {
  const int ranks = args.group.num_ranks;
  const int rank = args.group.rank;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const FewParts parts(args, call.epoch, rank);
  bool ok = true;
#pragma unroll 1
  for (int pair = static_cast<int>(threadIdx.x) / 32; pair < ranks * ranks; pair += kFewWarps) {
    const int source = pair / ranks;
    const int dst = pair - source * ranks;
    const std::uint64_t* const header_at = parts.headers + source * FewTokens::kMaxBlocks;
    const std::uint64_t* const word_at = parts.bits + pair * FewTokens::kMaxWords + lane;
    const std::uint64_t header_seen = load_relaxed(header_at);
    const std::uint64_t word_seen = load_relaxed(word_at);
    const FewHeader header = FewHeader::of(hear(call, source, header_at, header_seen, ok));
    std::uint32_t bits = 0;
    if (ok && lane < header.words()) bits = hear(call, source, word_at, word_seen, ok);
    const int count = __popc(bits);
    int sum = count;
    __syncwarp();
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(0xffffffffU, sum, static_cast<unsigned>(step));
      if (lane >= step) sum += other;
    }
    if (dst == rank) {
      f.bits[source][lane] = bits;
      f.before[source][lane] = static_cast<std::uint16_t>(sum - count);
    }
    if (source == rank && lane == static_cast<int>(blockIdx.x) * header.words_per_block()) {
      f.earlier[dst] = sum - count;
    }
    if (lane == 31) t.tokens[pair] = sum;
  }
  return ok;
}

/// The headers of all blocks, a warp for each rank, from behind: false in a thread that has not heard all, or has heard
/// of something that is not for few tokens.
__device__ inline bool hear_headers(const FewPrepareArgs& args, const CallContext& call, FewTables& f) {
  const int source = kFewWarps - 1 - static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  if (source >= args.group.num_ranks || lane >= FewTokens::kMaxBlocks) return true;
  const FewParts parts(args, call.epoch, args.group.rank);
  const std::uint64_t* const at = parts.headers + source * FewTokens::kMaxBlocks;
  const std::uint64_t first_seen = load_relaxed(at);
  const std::uint64_t seen = load_relaxed(at + lane);
  bool ok = true;
  const FewHeader first = FewHeader::of(hear(call, source, at, first_seen, ok));
  if (lane == 0) f.shape[source] = first;
  if (!ok || lane >= first.blocks) return ok;
  const FewHeader header = FewHeader::of(hear(call, source, at + lane, seen, ok));
  return ok && !header.refused && header.dispatches == (args.call == DeviceCall::kPrepareAndDispatch);
}

/// Where everything of this block begins. False where a rank would get more rows than fit.
__device__ inline bool place_few(const FewPrepareArgs& args, const Tables& t, FewTables& f) {
  const int ranks = args.group.num_ranks;
  const int rank = args.group.rank;
  const int d = static_cast<int>(threadIdx.x);
  if (d >= ranks) return true;
  const std::int64_t limit = pair_limit(args.layout);
  std::int64_t all = 0;
  std::int32_t base = f.earlier[d];
  std::int32_t stage = 0;
  std::int32_t pair_begin = 0;
  int words = 0;
  for (int s = 0; s < ranks; ++s) {
    const std::int32_t tokens = t.tokens[s * ranks + d];
    all += tokens;
    if (s < rank) base += tokens;
    if (s < rank) stage -= tokens;
    if (s < d && s != rank) stage += t.tokens[rank * ranks + s];
    if (s < d) pair_begin += t.tokens[s * ranks + rank];
    words = max(words, f.shape[s].words());
  }
  t.base[d] = base;
  t.stage[d] = stage;
  t.out_rows[d] = static_cast<std::int32_t>(args.layout.static_output_rows(clip(all, limit)));
  f.pair_begin[d] = pair_begin;
  f.words_per_block[d] = Divider(static_cast<std::uint32_t>(f.shape[d].words_per_block()));
  if (d == 0) f.words = Divider(static_cast<std::uint32_t>(words));
  return all <= limit;
}

// ---- Describing -----------------------------------------------------------------------------------------------------

/// The slow part of waiting for a unit of a record; false when the wait was given up.
__device__ __noinline__ inline bool poll_unit(const CallContext& call, int source, const std::byte* at) {
  const std::uint64_t start_ns = now_ns();
  for (std::uint32_t polls = 1;; ++polls) {
    if (load_whole(at).x == call.epoch) return true;
    if (polls % kPollsPerLook == 0 && gives_up(call, source, start_ns, polls)) return false;
  }
}

/// The blocks that describe, and this one's place among them: the first one keeps the books, where there are others.
__device__ inline Worker describers() {
  const int keeps_books = gridDim.x > 1 ? 1 : 0;
  return {static_cast<int>(blockIdx.x) - keeps_books, static_cast<int>(gridDim.x) - keeps_books};
}

/// Received rows that carry no token.
__device__ inline void describe_few_padding(const FewPrepareArgs& args, const Received& mine, const Worker& worker) {
  const auto first = static_cast<unsigned>(worker.idx * kFewThreads) + threadIdx.x;
  const auto step = static_cast<unsigned>(worker.count * kFewThreads);
  const auto num_rows = static_cast<unsigned>(mine.num_rows);
  const auto top_k = static_cast<unsigned>(args.handle.top_k);
#pragma unroll 1
  for (unsigned row = static_cast<unsigned>(mine.num_pairs) + first; row < num_rows; row += step) {
    args.handle.src_rank[row] = -1;
    args.handle.src_token[row] = -1;
  }
#pragma unroll 1
  for (unsigned i = static_cast<unsigned>(mine.num_pairs) * top_k + first; i < num_rows * top_k; i += step) {
    args.handle.local_expert_ids[i] = -1;
    args.handle.row_weights[i] = 0.0F;
  }
}

/// Rows that tokens of all ranks have here, a thread for each unit of each record, as they come.
__device__ inline void describe_few_rows(const FewPrepareArgs& args, const CallContext& call, const FewTables& f,
                                         const Worker& worker) {
  const int top_k = args.handle.top_k;
  const std::uint32_t units = args.few.units.divisor();
  const std::uint32_t words = f.words.divisor();
  const unsigned count = static_cast<unsigned>(args.group.num_ranks) * words * FewTokens::kWordBits * units;
  const unsigned step = static_cast<unsigned>(worker.count) * kFewThreads;
  const std::byte* const records = FewParts(args, call.epoch, args.group.rank).records;
#pragma unroll 1
  for (unsigned i = static_cast<unsigned>(worker.idx) * kFewThreads + threadIdx.x; i < count; i += step) {
    const std::uint32_t token_bit = args.few.units.divide(i);
    const unsigned unit = i - token_bit * units;
    const unsigned bit = token_bit & 31U;
    const std::uint32_t source = f.words.divide(token_bit >> 5);
    const unsigned word = (token_bit >> 5) - source * words;
    const std::uint32_t bits = f.bits[source][word];
    if ((bits >> bit & 1U) == 0) continue;
    const Divider per_block = f.words_per_block[source];
    const std::uint32_t block = per_block.divide(word);
    const std::uint32_t token = block * static_cast<unsigned>(f.shape[source].tokens_per_block) +
                                (word - block * per_block.divisor()) * FewTokens::kWordBits + bit;
    const std::size_t at = (std::size_t{source} * static_cast<unsigned>(args.few.max_tokens) + token) * units + unit;
    const std::byte* const unit_at = records + at * FewTokens::kUnitBytes;
    uint4 record = load_whole(unit_at);
    if (record.x != call.epoch) {
      if (!poll_unit(call, static_cast<int>(source), unit_at)) return;
      record = load_whole(unit_at);
    }
    const std::int64_t row = f.pair_begin[source] + f.before[source][word] + __popc(bits & ((1U << bit) - 1));
    if (unit == 0) {
      args.handle.src_rank[row] = static_cast<std::int32_t>(source);
      args.handle.src_token[row] = static_cast<std::int32_t>(token);
    }
    const auto position = static_cast<int>(2 * unit);
    const std::int64_t entry = row * top_k + position;
    const auto expert = [](std::uint32_t id) {
      return id == FewTokens::kNoExpert ? -1 : static_cast<std::int32_t>(id);
    };
    args.handle.local_expert_ids[entry] = expert(record.y & 0xffffU);
    args.handle.row_weights[entry] = __uint_as_float(record.z);
    if (position + 1 >= top_k) continue;
    args.handle.local_expert_ids[entry + 1] = expert(record.y >> 16);
    args.handle.row_weights[entry + 1] = __uint_as_float(record.w);
  }
}

/// The summary of a call, by one block, to the host or to the handle, where the host finds it.
__device__ inline void tell_host(const FewPrepareArgs& args, const CallContext& call, const Tables& t,
                                 const Exchange& exchange, const Received& mine) {
  Summary& summary = args.leaves_summary ? *args.handle.summary : *args.summary;
  write_counts(args, call, t, exchange, mine, summary);
  if (threadIdx.x != 0) return;
  if (!args.leaves_summary) return publish_summary(args);
  if (summary.finding == static_cast<std::uint32_t>(Finding::kNone)) return leave_summary(args);
  tell_finding(args, summary);
  publish_summary(args);
}

/// What the caller and the host learn, by one block: tokens of all ranks for each expert here, and the summary.
__device__ inline void keep_few_books(const FewPrepareArgs& args, const CallContext& call, const Tables& t,
                                      FewTables& f, Exchange& exchange, const Received& mine) {
  constexpr int kLoads = 8;
  constexpr int kChunks = FewTokens::kMaxBlocks / kLoads;
  const int rank = args.group.rank;
  const ExpertPartition partition = args.layout.partition();
  const int first_expert = partition.first_expert(rank);
  const int num_local = partition.num_local_experts(rank);
  const int counters = args.few.counters;
  const std::uint64_t* const counts = FewParts(args, call.epoch, rank).counts;
  bool ok = true;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < num_local * args.group.num_ranks * kChunks; i += kFewThreads) {
    const int chunk = i / num_local;
    const int local = i - chunk * num_local;
    const int source = chunk / kChunks;
    const int first_block = (chunk - source * kChunks) * kLoads;
    const int blocks = f.shape[source].blocks - first_block;  // of those here
    const std::uint64_t* const first =
        counts + (std::int64_t{source} * FewTokens::kMaxBlocks + first_block) * counters + local;
    std::uint64_t words[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) words[j] = j < blocks ? load_relaxed(first + j * counters) : tagged(call, 0);
    std::int32_t sum = 0;
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      sum += static_cast<std::int32_t>(hear(call, source, first + j * counters, words[j], ok));
    }
    if (sum > 0) atomicAdd(&t.total[first_expert + local], sum);
  }
  // What the other blocks of this rank send to others; this block's is in there.
  const int block = static_cast<int>(threadIdx.x);
  if (block > 0 && block < static_cast<int>(gridDim.x)) {
    const std::uint64_t* const at =
        counts + (std::int64_t{rank} * FewTokens::kMaxBlocks + block) * counters + counters - 1;
    const auto remote = static_cast<std::int32_t>(hear(call, rank, at, load_relaxed(at), ok));
    if (remote > 0) atomicAdd(&f.remote, remote);
  }
  if (__syncthreads_and(ok) == 0) return;
  exchange.remote_assignments = f.remote;
  tell_host(args, call, t, exchange, mine);
}

// ---- All of it ------------------------------------------------------------------------------------------------------

/// Behind count_share(). False where the ranks have to do it as for many tokens: nothing has been done then.
__device__ inline bool prepare_few(const FewPrepareArgs& args, const CallContext& call, const Tables& t, bool bad) {
  __shared__ FewTables f;
  const DeviceGroup& group = args.group;
  const Share share = block_share(args.handle.num_tokens);
  const bool empty = share.begin >= share.end;
  if (threadIdx.x == 0) f.remote = 0;
  const FewHeader header{.refused = __syncthreads_or(bad) != 0,
                         .dispatches = args.call == DeviceCall::kPrepareAndDispatch,
                         .blocks = static_cast<std::int32_t>(gridDim.x),
                         .tokens_per_block = static_cast<std::int32_t>(tokens_per_block(args.handle.num_tokens))};
  tell_bits(args, call, t, header, empty);
  if (!header.refused && !empty) tell_records(args, call, t, share);
  if (!header.refused) tell_expert_counts(args, call, t, f);
  bool ok = hear_bits(args, call, t, f);
  ok = hear_headers(args, call, f) && ok;
  bool all_few = __syncthreads_and(ok) != 0;
  if (all_few) all_few = __syncthreads_and(place_few(args, t, f)) != 0;
  if (!all_few) {
    // As counting has left them.
    for (int i = static_cast<int>(threadIdx.x); i < group.num_ranks * group.num_ranks; i += kFewThreads) {
      t.tokens[i] = 0;
    }
    for (int d = static_cast<int>(threadIdx.x); d < group.num_ranks; d += kFewThreads) t.base[d] = 0;
    __syncthreads();
    return false;
  }
  Exchange exchange{.refused = false,
                    .disagreed = false,
                    .refusing_rank = -1,
                    .overflow_rank = -1,
                    .overflow_rows = 0,
                    .remote_assignments = 0};
  const Received mine = received(args, t, exchange);
  if (blockIdx.x == 0 && threadIdx.x / 32 == kFewWarps - 1) write_totals(args, call, t, exchange, mine);
  if (blockIdx.x != 0 && threadIdx.x == 0) {
    store_relaxed(FewParts(args, call.epoch, group.rank).counts +
                      (std::int64_t{group.rank} * FewTokens::kMaxBlocks + blockIdx.x) * args.few.counters +
                      args.few.counters - 1,
                  tagged(call, static_cast<std::uint32_t>(f.remote)));
  }
  const Tile tile{share.begin, static_cast<int>(share.end - share.begin), true};
  PlaceCounts counts;
  if (!empty) place_tile<kFewThreads>(args, t, exchange, tile, counts);
  let_next_kernel_start();
  tell_placed(args, call, false);
  if (!empty) place_rows<kFewThreads>(args, t, exchange, tile.begin, tile.num_tokens, counts);
  const Worker worker = describers();
  if (worker.idx >= 0) {
    describe_few_padding(args, mine, worker);
    describe_few_rows(args, call, f, worker);
  }
  if (blockIdx.x == 0) keep_few_books(args, call, t, f, exchange, mine);
#pragma unroll 1
  for (int e = static_cast<int>(threadIdx.x); e < group.control.num_experts; e += kFewThreads) {
    count_expert_tokens(args, e, t.counts[group.num_ranks + e]);
  }
  return true;
}

}  // namespace epistle::cuda
