// A dispatch with ids in one kernel and one call: every rank sends its rows, each with a header, and its counts, to
// fixed places of the receivers, whatever the others do; who receives waits for the counts of all, which say where a
// source's rows begin, and takes every row to its output rows as its lines arrive. Nothing is agreed on before: a line
// or a count without this call's epoch is not there, and where a rank is in another call, what it owes does not come.
#include "dispatch/cuda/device/start_kernel.cuh"
#include "dispatch/cuda/low_latency/kernels.hpp"
#include "dispatch/cuda/low_latency/receive_lines.cuh"

namespace epistle::cuda {
namespace {

/// Warps of a block that are the first to read the routing, and wait for counts, while the others quantise and send
/// rows.
constexpr int kKeeperWarps = 6;
constexpr int kSenderWarps = kLineWarps - kKeeperWarps;
constexpr int kKeeperBarrier = 1;
constexpr int kSenderBarrier = 2;

/// Which rank has which experts, and how many rows come out there.
__device__ void fill_rank_tables(const PrepareArgs& args, const LineTables& t, int rank) {
  const ExpertPartition partition = args.layout.partition();
  if (rank >= partition.num_ranks) return;
  const bool blocks = args.layout.params().layout == OutputLayout::kExpertBlocks;
  t.all.first[rank] = partition.first_expert(rank);
  t.all.out_rows[rank] =
      static_cast<std::int32_t>(args.layout.params().capacity_rows) * (blocks ? partition.num_local_experts(rank) : 1);
}

/// What the counts say of the experts here, for the caller.
__device__ void write_expert_counts(const PrepareArgs& args, const LineTables& t, std::int32_t num_rows,
                                    const Team& team) {
  const HandleArrays& handle = args.handle;
  const int first_expert = t.all.first[args.group.rank];
  const bool token_major = args.layout.token_major();
  if (team.thread == 0 && t.num_local == 0 && !token_major) handle.expert_begin[0] = 0;
#pragma unroll 1
  for (int local = team.thread; local < t.num_local; local += team.count) {
    const std::int32_t total = t.all.total[first_expert + local];
    handle.expert_counts[local] = total;
    handle.expert_dropped[local] = 0;
    if (token_major) continue;
    const std::int32_t begin = t.all.group[first_expert + local];
    handle.expert_begin[local] = begin;
    if (local < t.num_local - 1) continue;
    handle.expert_begin[t.num_local] = clip(begin + args.layout.group_rows(total), num_rows);
  }
}

/// Who sends how much to whom, for the host; by one warp.
__device__ void write_pairs(const PrepareArgs& args, const LineTables& t, Summary& summary) {
  const int ranks = args.group.num_ranks;
  auto* pairs = reinterpret_cast<std::int32_t*>(&summary + 1);
  std::int32_t* output_rows = pairs + ranks * ranks;
  std::int32_t* other_pairs = output_rows + ranks;
#pragma unroll 1
  for (int i = lane_id(); i < ranks * ranks; i += kWarpSize) pairs[i] = t.all.tokens[i];
#pragma unroll 1
  for (int r = lane_id(); r < ranks; r += kWarpSize) {
    output_rows[r] = t.all.out_rows[r];
    std::int32_t others = 0;
#pragma unroll 1
    for (int d = 0; d < ranks; ++d) others += d != r ? t.all.tokens[r * ranks + d] : 0;
    other_pairs[r] = others;
  }
}

/// The numbers of a call as a whole, for the host and for later calls; by one thread.
__device__ void write_numbers(const PrepareArgs& args, const LineTables& t, const Received& mine,
                              std::int32_t content_rows, const Books& books) {
  Summary& summary = *args.handle.summary;
  args.handle.totals->content_rows = content_rows;
  summary.content_rows = content_rows;
  summary.num_rows = mine.num_rows;
  summary.padding_rows = mine.num_rows - content_rows;
  summary.sent_remote_assignments = books.remote;
  summary.lost_by_this_rank = books.lost;
  summary.dropped_by_this_rank = 0;
  summary.dropped_here = 0;
  summary.dropped_in_group = 0;
  summary.num_tokens = *t.all.routed;
  summary.peer = -1;
  summary.finding = static_cast<std::uint32_t>(Finding::kNone);
}

/// What the handle and the host are told of a call that all ranks go into; by the whole block, each warp something
/// else, and nobody waits for it.
__device__ void keep_books(const LineDispatchArgs& args, const CallContext& call, const LineTables& t,
                           const Books& books) {
  const PrepareArgs& routing = args.routing;
  const int ranks = routing.group.num_ranks;
  Exchange exchange{};
  exchange.refusing_rank = -1;
  exchange.overflow_rank = -1;
  const auto warp = static_cast<int>(threadIdx.x) / kWarpSize;
  constexpr int kTotalsWarp = 0;
  constexpr int kSummaryWarp = 1;
  constexpr int kOthers = 2 * kWarpSize;
  if (warp == kTotalsWarp) {
    write_totals(routing, call, t.all, exchange, received(routing, t.all, exchange));
  } else if (warp == kSummaryWarp) {
    write_pairs(routing, t, *routing.handle.summary);
    const Received mine = received(routing, t.all, exchange);
    if (lane_id() == 0) {
      write_numbers(routing, t, mine, routing.layout.token_major() ? mine.num_pairs : books.content, books);
    }
    __syncwarp();
    // Nothing of it crosses to the host before somebody asks, or combine tells (LineCombineArgs::passed_id): a kernel
    // waits for what it writes there.
    if (lane_id() == 0) leave_summary(routing);
  } else {
    const Team others{static_cast<int>(threadIdx.x) - kOthers, kLineThreads - kOthers, 0};
    write_expert_counts(routing, t, t.all.out_rows[routing.group.rank], others);
#pragma unroll 1
    for (int e = others.thread; e < routing.group.control.num_experts; e += others.count) {
      count_expert_tokens(routing, e, t.routing.count(expert_column(ranks, e)));
    }
  }
}

/// The same of a call in which nothing is received, as the ranks do not agree, or one has refused its input. Rare.
__device__ __noinline__ void keep_refusal(const LineDispatchArgs& args, const CallContext call, std::byte* memory,
                                          const Books books, const Exchange exchange) {
  const PrepareArgs& routing = args.routing;
  const LineTables t = tables_of(routing, memory);
  Summary& summary = *routing.handle.summary;
  const Received mine = received(routing, t.all, exchange);
  const auto warp = static_cast<int>(threadIdx.x) / kWarpSize;
  if (warp == 0) {
    write_totals(routing, call, t.all, exchange, mine);
    write_pairs(routing, t, summary);
    if (lane_id() == 0) {
      write_numbers(routing, t, mine, 0, books);
      find_fault(routing, call, exchange, summary);
    }
  }
  write_expert_counts(routing, t, t.all.out_rows[routing.group.rank], whole_block());
  __syncthreads();
  if (threadIdx.x != 0) return;
  tell_finding(routing, summary);
  publish_summary(routing);
}

/// Ranks that are left out have no rows: takes the assignments to their experts back out of the tables that
/// read_routing() has filled. By the whole block.
__device__ __noinline__ void leave_out_masked(const LineDispatchArgs& args, std::byte* memory) {
  const PrepareArgs& routing = args.routing;
  const int ranks = routing.group.num_ranks;
  LineTables t = tables_of(routing, memory);
  const int count = static_cast<int>(routing.handle.num_tokens) * args.lines.top_k;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kLineThreads) {
    if (t.routing.entries[i] == kNoExpert) continue;
    if (routing.group.is_masked(t.routing.ranks[i])) t.routing.entries[i] = kNoExpert;
  }
  for (int column = static_cast<int>(threadIdx.x); column < t.routing.num_columns; column += kLineThreads) {
    const int rank = column < ranks ? column : args.lines.ranks.rank_of(column - ranks);
    if (!routing.group.is_masked(rank)) continue;
    for (int word = 0; word < t.routing.stride; ++word) t.routing.bits[column * t.routing.stride + word] = 0;
  }
  __syncthreads();
}

/// What the warps of a block have in common.
struct BlockState {
  int refusing_rank;  ///< kMaxRanks: none
  bool bad_routing;   ///< some thread has seen ids that are refused
  Books books;
  std::uint64_t placed;  ///< a barrier that the keepers open when the tables say where rows go
  volatile std::uint32_t touched[kLineWarps];
};

/// The block that keeps the books waits for all counts, and tells of them as soon as they are there. All of it.
__device__ bool settle_books(const LineDispatchArgs& args, const CallContext& call, const LineTables& t, bool refused,
                             BlockState& state) {
  const bool ok = await_books(args.routing, call, args.lines, t, refused, state.refusing_rank, state.books);
  __syncthreads();
  if (threadIdx.x < kWarpSize) {
    const int ranks = args.routing.group.num_ranks;
    place_pairs(t, ranks, [&](int source) { return t.all.tokens[source * ranks + args.routing.group.rank]; });
  }
  if (state.books.trouble != 0) return ok;
  if (args.routing.group.num_masked != 0) {
    count_lost(args.routing, *t.all.routed, state.books.lost);
    __syncthreads();
  }
  keep_books(args, call, t, state.books);
  if (args.routing.layout.params().layout == OutputLayout::kExpertBlocks) describe_block_padding(args.routing, t);
  return ok;
}

template <bool kQuantises, bool kPlaced, class Args>
__global__ void __launch_bounds__(kLineThreads, 1) dispatch_lines_kernel(const __grid_constant__ Args args) {
  extern __shared__ __align__(16) std::byte shared[];
  __shared__ BlockState state;
  const std::uint32_t touch = touch_args(args);
  const PrepareArgs& routing = args.routing;
  const DeviceGroup& group = routing.group;
  LineTables t = tables_of(routing, shared);
  // The last block moves no rows: what it does takes as long as they do.
  const int num_movers = max(1, static_cast<int>(gridDim.x) - 1);
  const bool moves_rows = static_cast<int>(blockIdx.x) < num_movers;
  const bool keeps_books = blockIdx.x == gridDim.x - 1;
  const bool has_send = (args.phases & kSendPhase) != 0;
  const bool has_receive = (args.phases & kReceivePhase) != 0;
  const auto warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const bool sends = warp < kSenderWarps;
  const bool sends_rows = sends && moves_rows && has_send;
  const Worker sending = line_worker(num_movers, warp, kSenderWarps);
  // Warps that have nothing to send begin to receive.
  const Worker receiving = line_worker(num_movers, sends ? kSenderWarps - 1 - warp : warp, kLineWarps);
  WarpScratch& scratch = t.scratch[warp];
  CallContext call;
  const LineSender<kQuantises> sender{args, call, t, scratch};
  const LineReceiver<kQuantises, Args> receiver{args, call, t, scratch};
  const Team senders{static_cast<int>(threadIdx.x), kSenderWarps * kWarpSize, kSenderBarrier};
  const Team keepers{static_cast<int>(threadIdx.x) - senders.count, kKeeperWarps * kWarpSize, kKeeperBarrier};
  if (!sends) {
    t.routing.clear(keepers);
    fill_rank_tables(routing, t, keepers.thread);
    if (keepers.thread == 0) {
      state.refusing_rank = kMaxRanks;
      state.bad_routing = false;
      state.books = Books{};
      open_later(state.placed);
    }
  }
  __syncthreads();
  wait_for_start(group);
  if (args.next_starts_early) let_next_kernel_start();
  const CallStart start{.call = routing.call, .phase = Phase::kLayout, .buffer = args.buffer};
  const NextCall next(group, start);
  EarlyRouting early;
  // The others help with what is more than an entry for each of their threads.
  const Team readers{sends ? keepers.count + senders.thread : keepers.thread, kLineThreads, 0};
  early.load(routing, args.lines, readers);
  typename LineSender<kQuantises>::Given given{};
  typename LineSender<kQuantises>::RowChunk data{};
  if (sends_rows) sender.load(sending.idx, given);
  if (!next.finish(group, start, call)) return;
  if (sends_rows) sender.make(given, sending.idx, data);
  const bool bad = read_routing<kPlaced>(routing, args.lines, t, early, readers);
  if (keeps_books && readers.thread == 0) *t.all.routed = early.num_routed(routing);
  if (lane_id() == 0) state.touched[warp] = touch;
  // Also: every thread has read the epoch. The next kernel reads it when all blocks of this one have ended.
  // A word and a plain barrier: racecheck does not see that BAR.RED (__syncthreads_or) orders the tables too.
  if (bad) state.bad_routing = true;
  __syncthreads();
  const bool refused = state.bad_routing;
  if (group.num_masked != 0) leave_out_masked(args, shared);
  bool ok = true;
  if (keeps_books && has_send && !sends) announce(group, call, keepers.thread, keepers.count);
  if constexpr (kHasExtras<Args>) {
    const bool tells = has_send && args.flags.number != nullptr;
    if (tells && blockIdx.x == 0 && threadIdx.x == 0) *args.flags.number = call.epoch;
  }
  if (sends && has_send) {
    tell_line_counts(group, call, args.lines, t, refused, senders);
    if (sends_rows && !refused) sender.run(sending, data, given);
  }
  if (has_receive && keeps_books) {
    ok = settle_books(args, call, t, refused, state);
  } else if (has_receive && !sends) {
    ok = place_received(routing, call, args.lines, t, refused, keepers, state.refusing_rank);
    // Nearly: a block whose warps still watch meets in a moment.
    if (keepers.thread == 0) open(state.placed);
  }
  if (!has_receive) return;
  typename LineReceiver<kQuantises, Args>::Unit first;
  if (moves_rows && !keeps_books) receiver.watch(receiving.idx, state.placed, first);
  const bool disagreed = __syncthreads_and(ok) == 0;
  leave_call(group, call, kLineThreads - 1);
  if (disagreed) {
    // Either a wait was given up, or all ranks see that they disagree: then the routing is a void one.
    const bool agreed = settle(call);
    if (__syncthreads_or(agreed || has_failed(group)) != 0) return;
  }
  const int refuser = disagreed || state.refusing_rank == kMaxRanks ? -1 : state.refusing_rank;
  const bool nothing = disagreed || refuser >= 0;
  if (nothing) {
    place_nothing(routing, shared);
    if (moves_rows && sends) sender.clear(sending);
  }
  if (moves_rows) {
    if constexpr (kHasExtras<Args>) {
      if (args.flags.number != nullptr) raise_empty(args, t, call.epoch, num_movers);
    }
    receiver.run(receiving, first);
    LinePadding{args, t, receiving}.run();
  }
  if (!keeps_books || !nothing) return;
  if (routing.layout.params().layout == OutputLayout::kExpertBlocks) describe_block_padding(routing, t);
  Exchange exchange{};
  exchange.disagreed = disagreed;
  exchange.refusing_rank = refuser;
  exchange.overflow_rank = -1;
  exchange.refused = true;
  keep_refusal(args, call, shared, state.books, exchange);
  if (disagreed) abandon_call(call, false);  // the summary tells the host
}

template <class Args>
using DispatchKernel = void (*)(Args);

template <class Args>
DispatchKernel<Args> dispatch_kernel(bool quantises, bool placed) {
  if (placed) return quantises ? dispatch_lines_kernel<true, true, Args> : dispatch_lines_kernel<false, true, Args>;
  return quantises ? dispatch_lines_kernel<true, false, Args> : dispatch_lines_kernel<false, false, Args>;
}

LineShape shape_of(const DispatchLayout& layout) {
  const LayoutParams& params = layout.params();
  return {params.num_ranks, params.num_experts, params.top_k, layout.partition().max_local_experts(),
          params.max_tokens};
}

template <class Args>
cudaError_t launch(const Args& args, cudaStream_t stream) {
  LineTables t;
  const std::int64_t shared_bytes = carve(nullptr, shape_of(args.routing.layout), t);
  return start_kernel(dispatch_kernel<Args>(args.lines.quantises, args.routing.places_experts()),
                      {args.num_blocks, kLineThreads, shared_bytes}, args.routing.group.early_start, args, stream);
}

}  // namespace

std::int64_t line_dispatch_shared_bytes(const DispatchLayout& layout) noexcept {
  LineTables t;
  return carve(nullptr, shape_of(layout), t);
}

const void* line_dispatch_kernel_address(bool quantises, bool placed) noexcept {
  return reinterpret_cast<const void*>(dispatch_kernel<LineDispatchArgs>(quantises, placed));
}
const void* extra_dispatch_kernel_address(bool quantises, bool placed) noexcept {
  return reinterpret_cast<const void*>(dispatch_kernel<ExtraDispatchArgs>(quantises, placed));
}

cudaError_t launch_line_dispatch(const LineDispatchArgs& args, cudaStream_t stream) { return launch(args, stream); }
cudaError_t launch_extra_dispatch(const ExtraDispatchArgs& args, cudaStream_t stream) { return launch(args, stream); }

}  // namespace epistle::cuda
