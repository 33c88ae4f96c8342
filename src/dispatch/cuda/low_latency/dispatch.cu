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

/// Which rank has which experts.
__device__ void fill_rank_tables(const PrepareArgs& args, const LineTables& t) {
  const ExpertPartition partition = args.layout.partition();
  for (int rank = static_cast<int>(threadIdx.x); rank < partition.num_ranks; rank += kLineThreads) {
    t.all.first[rank] = partition.first_expert(rank);
  }
#pragma unroll 1
  for (int e = static_cast<int>(threadIdx.x); e < partition.num_experts; e += kLineThreads) {
    t.routing.rank_of[e] = static_cast<std::uint8_t>(partition.rank_of(e));
  }
}

/// Assignments of this rank to experts of others; by one block.
__device__ int count_remote(const PrepareArgs& args, const LineTables& t) {
  __shared__ int remote;
  if (threadIdx.x == 0) remote = 0;
  __syncthreads();
  const int first_expert = t.all.first[args.group.rank];
  int mine = 0;
#pragma unroll 1
  for (int e = static_cast<int>(threadIdx.x); e < args.group.control.num_experts; e += kLineThreads) {
    if (e < first_expert || e >= first_expert + t.num_local) mine += t.routing.count(args.group.num_ranks + e);
  }
  mine = __reduce_add_sync(kFullWarp, mine);
  if (lane_id() == 0 && mine > 0) atomicAdd(&remote, mine);
  __syncthreads();
  return remote;
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

/// What the handle and the host are told of the call as a whole; by one block. Not inlined, as everything that the
/// other blocks do not execute: what they do execute is fetched while they wait for it.
__device__ __noinline__ void keep_books(const LineDispatchArgs& args, const CallContext& call, const LineTables& t,
                                        Exchange exchange, std::int32_t routed) {
  const PrepareArgs& routing = args.routing;
  if (threadIdx.x == 0) *t.all.routed = routed;
  const Received mine = received(routing, t.all, exchange);
  if (threadIdx.x / kWarpSize == 0) write_totals(routing, call, t.all, exchange, mine);
  Summary& summary = *routing.handle.summary;
  write_counts(routing, call, t.all, exchange, mine, summary);
  if (threadIdx.x == 0) {
    if (summary.finding == static_cast<std::uint32_t>(Finding::kNone)) {
      // Nothing of it has to cross to the host before somebody asks, and no write there is waited for.
      fence_device();
      *static_cast<volatile std::uint64_t*>(&routing.summary->passed_id) = routing.prepare_id;
    } else {
      tell_finding(routing, summary);
      publish_summary(routing);
    }
  }
}

template <bool kQuantises>
__global__ void __launch_bounds__(kLineThreads, 1) line_dispatch_kernel(const __grid_constant__ LineDispatchArgs args) {
  extern __shared__ __align__(16) std::byte shared[];
  const PrepareArgs& routing = args.routing;
  const DeviceGroup& group = routing.group;
  const ExpertPartition partition = routing.layout.partition();
  LineTables t;
  carve(shared,
        {group.num_ranks, partition.num_experts, routing.handle.top_k, partition.max_local_experts(),
         group.control.max_tokens},
        t);
  t.num_local = partition.num_local_experts(group.rank);
  t.routing.clear();
  fill_rank_tables(routing, t);
  wait_for_start(group);
  if (args.next_starts_early) let_next_kernel_start();
  EarlyRouting early;
  early.load(routing);
  CallContext call;
  if (!next_call(group, {.call = routing.call, .phase = Phase::kLayout, .buffer = args.buffer}, call)) return;
  // The last block moves no rows: what it does takes as long as they do.
  const int num_movers = max(1, static_cast<int>(gridDim.x) - 1);
  const bool moves_rows = static_cast<int>(blockIdx.x) < num_movers;
  const bool keeps_books = blockIdx.x == gridDim.x - 1;
  if (keeps_books && (args.phases & kSendPhase) != 0) announce(call);
  // Also: every thread has read the epoch. The next kernel reads it when all blocks of this one have ended.
  __syncthreads();
  if ((args.phases & kReceivePhase) != 0) leave_call(call);
  const bool refused = __syncthreads_or(read_routing(routing, t, early)) != 0;
  const Worker worker = line_worker(num_movers);
  WarpScratch& scratch = t.scratch[threadIdx.x / kWarpSize];
  const LineSender<kQuantises> sender{args, call, t, scratch};
  if ((args.phases & kSendPhase) != 0) {
    tell_line_counts(call, args.lines, t, refused);
    if (!refused && moves_rows) sender.run(worker);
  }
  if ((args.phases & kReceivePhase) == 0) return;
  Exchange exchange{};
  if (keeps_books && !refused) exchange.remote_assignments = count_remote(routing, t);
  const LineCounts counts = await_tables(routing, call, args.lines, t, refused, keeps_books);
  const bool disagreed = !counts.there;
  if (disagreed) {
    // Either a wait was given up, or all ranks see that they disagree: then the routing is a void one.
    const bool agreed = settle(call);
    if (__syncthreads_or(agreed || has_failed(group)) != 0) return;
  }
  exchange.disagreed = disagreed;
  exchange.refusing_rank = counts.refusing_rank;
  exchange.overflow_rank = -1;
  exchange.refused = disagreed || exchange.refusing_rank >= 0;
  if (exchange.refused) exchange.remote_assignments = 0;
  place_sources(routing, t, exchange.refused);
  if (exchange.refused && moves_rows) sender.clear(worker);
  if (moves_rows) {
    LineReceiver<kQuantises>{args, call, t, scratch}.run(worker);
    LinePadding{args, t, worker}.run();
  }
  if (!keeps_books) return;
  keep_books(args, call, t, exchange, early.routed);
  if (disagreed) abandon_call(call, false);  // the summary tells the host
}

using DispatchKernel = void (*)(LineDispatchArgs);

DispatchKernel dispatch_kernel(bool quantises) {
  return quantises ? line_dispatch_kernel<true> : line_dispatch_kernel<false>;
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

const void* line_dispatch_kernel_address(bool quantises) noexcept {
  return reinterpret_cast<const void*>(dispatch_kernel(quantises));
}

cudaError_t launch_line_dispatch(const LineDispatchArgs& args, cudaStream_t stream) {
  const std::int64_t shared_bytes = line_dispatch_shared_bytes(args.routing.layout);
  return start_kernel(dispatch_kernel(args.lines.quantises), {args.num_blocks, kLineThreads, shared_bytes},
                      args.routing.group.early_start, args, stream);
}

}  // namespace epistle::cuda
