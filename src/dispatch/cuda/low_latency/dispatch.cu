// A dispatch with ids in one kernel and one call: every rank sends its rows, each with a header, and its counts, to
// fixed places of the receivers, whatever the others do; who receives waits for the counts of all, which say where a
// source's rows begin, and takes every row to its output rows as its lines arrive. Nothing is agreed on before: a line
// or a count without this call's epoch is not there, and where a rank is in another call, what it owes does not come.
#include <cstddef>

#include "dispatch/cuda/device/start_kernel.cuh"
#include "dispatch/cuda/low_latency/line_launch.hpp"
#include "dispatch/cuda/low_latency/receive_lines.cuh"

namespace epistle::cuda {
namespace {

/// Warps of a block that read the routing and wait for counts, while the others send rows.
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

/// The whole of a summary to the host, but for the ids, which are written by themselves.
__device__ void tell_finding(const PrepareArgs& args, const Summary& summary) {
  constexpr std::size_t kBegin = offsetof(Summary, finding);
  const int ranks = args.group.num_ranks;
  const auto num_words = static_cast<int>((sizeof(Summary) - kBegin) / 4) + ranks * ranks + 2 * ranks;
  const auto* from = reinterpret_cast<const std::uint32_t*>(reinterpret_cast<const std::byte*>(&summary) + kBegin);
  auto* to = reinterpret_cast<std::uint32_t*>(reinterpret_cast<std::byte*>(args.summary) + kBegin);
#pragma unroll 1
  for (int i = 0; i < num_words; ++i) to[i] = from[i];
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

/// What the handle and the host are told of the call as a whole; by the warps of `team`, at least four, each something
/// else. Not inlined, as it is called from two places.
__device__ __noinline__ void keep_books(const LineDispatchArgs& args, const CallContext call, std::byte* memory,
                                        const Books books, const Exchange exchange, const Team team) {
  const PrepareArgs& routing = args.routing;
  const LineTables t = tables_of(routing, memory);
  Summary& summary = *routing.handle.summary;
  const bool token_major = routing.layout.token_major();
  const int warp = team.thread / kWarpSize;
  if (warp == 0) {
    const Received mine = received(routing, t.all, exchange);
    write_totals(routing, call, t.all, exchange, mine);
    if (lane_id() == 0) {
      const std::int32_t content_rows = token_major ? mine.num_pairs : exchange.refused ? 0 : books.content;
      routing.handle.totals->content_rows = content_rows;
      summary.content_rows = content_rows;
      summary.num_rows = mine.num_rows;
      summary.padding_rows = mine.num_rows - content_rows;
    }
  } else if (warp == 1) {
    write_pairs(routing, t, summary);
  } else if (warp == 2) {
    if (lane_id() == 0) {
      summary.sent_remote_assignments = exchange.remote_assignments;
      summary.dropped_by_this_rank = 0;
      summary.dropped_here = 0;
      summary.dropped_in_group = 0;
      summary.num_tokens = *t.all.routed;
      summary.peer = -1;
      summary.finding = static_cast<std::uint32_t>(Finding::kNone);
      if (exchange.refused) find_fault(routing, call, exchange, summary);
    }
  } else {
    constexpr int kOthers = 3 * kWarpSize;
    const Team others{team.thread - kOthers, team.count - kOthers, team.barrier};
    write_expert_counts(routing, t, t.all.out_rows[routing.group.rank], others);
#pragma unroll 1
    for (int e = others.thread; e < routing.group.control.num_experts && !exchange.refused; e += others.count) {
      count_expert_tokens(routing, e, t.routing.count(expert_column(routing.group.num_ranks, e)));
    }
  }
  team.meet();
  if (team.thread != 0) return;
  if (!exchange.refused) {
    // Nothing of it has to cross to the host before somebody asks, and no write there is waited for.
    fence_device();
    *static_cast<volatile std::uint64_t*>(&routing.summary->passed_id) = routing.prepare_id;
  } else {
    tell_finding(routing, summary);
    publish_summary(routing);
  }
}

/// What the warps of a block have in common.
struct BlockState {
  int refusing_rank;  ///< kMaxRanks: none
  Books books;
  volatile int placed;  ///< the tables say where rows go
  volatile std::uint32_t touched;
};

/// The block that keeps the books waits for all counts, and tells of them as soon as they are there.
__device__ bool settle_books(const LineDispatchArgs& args, const CallContext& call, LineTables& t, std::byte* memory,
                             bool refused, const Team& team, BlockState& state) {
  const PrepareArgs& routing = args.routing;
  const bool ok = await_books(routing, call, args.lines, t, refused, team, state.refusing_rank, state.books);
  team.meet();
  place_sources(routing, t, true, team);
  team.meet();
  if (team.thread == 0) state.placed = 1;
  if (state.books.trouble != 0) return ok;
  Exchange exchange{};
  exchange.refusing_rank = -1;
  exchange.overflow_rank = -1;
  exchange.remote_assignments = state.books.remote;
  keep_books(args, call, memory, state.books, exchange, team);
  return ok;
}

template <bool kQuantises, bool kPlaced>
__global__ void __launch_bounds__(kLineThreads, 1)
    dispatch_lines_kernel(const __grid_constant__ LineDispatchArgs args) {
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
  const LineReceiver<kQuantises> receiver{args, call, t, scratch};
  const Team senders{static_cast<int>(threadIdx.x), kSenderWarps * kWarpSize, kSenderBarrier};
  const Team keepers{static_cast<int>(threadIdx.x) - senders.count, kKeeperWarps * kWarpSize, kKeeperBarrier};
  if (!sends) {
    t.routing.clear(keepers);
    fill_rank_tables(routing, t, keepers.thread);
    if (keepers.thread == 0) {
      state.refusing_rank = kMaxRanks;
      state.books = Books{};
      state.placed = 0;
    }
    keepers.meet();
  }
  wait_for_start(group);
  if (args.next_starts_early) let_next_kernel_start();
  EarlyRouting early;
  if (!sends) early.load(routing, args.lines, keepers);
  typename LineSender<kQuantises>::Given given{};
  typename LineSender<kQuantises>::RowChunk data{};
  if (sends_rows) sender.load(sending.idx, given);
  if (!next_call(group, {.call = routing.call, .phase = Phase::kLayout, .buffer = args.buffer}, call)) return;
  if (keeps_books && has_send) announce(call);
  bool bad = false;
  if (!sends) {
    bad = read_routing<kPlaced>(routing, args.lines, t, early, keepers);
    if (keeps_books && keepers.thread == 0) *t.all.routed = early.num_routed(routing);
  } else if (sends_rows) {
    sender.make(given, sending.idx, data);
  }
  if (lane_id() == 0) state.touched = touch;
  // Also: every thread has read the epoch. The next kernel reads it when all blocks of this one have ended.
  const bool refused = __syncthreads_or(bad) != 0;
  bool ok = true;
  if (sends) {
    if (has_send) {
      tell_line_counts(call, args.lines, t, refused, senders);
      if (sends_rows && !refused) sender.run(sending, data, given);
    }
    if (keeps_books && has_receive) ok = settle_books(args, call, t, shared, refused, senders, state);
  } else if (has_receive && !keeps_books) {
    const bool with_experts = !routing.layout.token_major();
    ok = await_tables(call, args.lines, t, refused, with_experts, keepers, state.refusing_rank);
    keepers.meet();
    place_sources(routing, t, with_experts, keepers);
    if (keepers.thread == 0) state.placed = 1;
  }
  if (!has_receive) return;
  typename LineReceiver<kQuantises>::Unit first;
  if (moves_rows) receiver.watch(receiving.idx, state.placed, first);
  const bool disagreed = __syncthreads_and(ok) == 0;
  leave_call(call, kLineThreads - 1);
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
    receiver.run(receiving, first);
    LinePadding{args, t, receiving}.run();
  }
  if (!keeps_books || !nothing) return;
  Exchange exchange{};
  exchange.disagreed = disagreed;
  exchange.refusing_rank = refuser;
  exchange.overflow_rank = -1;
  exchange.refused = true;
  keep_books(args, call, shared, state.books, exchange, whole_block());
  if (disagreed) abandon_call(call, false);  // the summary tells the host
}

using DispatchKernel = void (*)(LineDispatchArgs);

DispatchKernel dispatch_kernel(bool quantises, bool placed) {
  if (placed) return quantises ? dispatch_lines_kernel<true, true> : dispatch_lines_kernel<false, true>;
  return quantises ? dispatch_lines_kernel<true, false> : dispatch_lines_kernel<false, false>;
}

LineShape shape_of(const DispatchLayout& layout) {
  const LayoutParams& params = layout.params();
  return {params.num_ranks, params.num_experts, params.top_k, layout.partition().max_local_experts(),
          params.max_tokens};
}

}  // namespace

std::int64_t line_dispatch_shared_bytes(const DispatchLayout& layout) noexcept {
  LineTables t;
  return carve(nullptr, shape_of(layout), t);
}

const void* line_dispatch_kernel_address(bool quantises, bool placed) noexcept {
  return reinterpret_cast<const void*>(dispatch_kernel(quantises, placed));
}

cudaError_t launch_line_dispatch(const LineDispatchArgs& args, cudaStream_t stream) {
  const std::int64_t shared_bytes = line_dispatch_shared_bytes(args.routing.layout);
  return start_kernel(dispatch_kernel(args.lines.quantises, args.routing.places_experts()),
                      {args.num_blocks, kLineThreads, shared_bytes}, args.routing.group.early_start, args, stream);
}

}  // namespace epistle::cuda
