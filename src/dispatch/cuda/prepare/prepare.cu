// prepare on the device: one kernel from a routing table to a place for every row, on both sides.
//
//   count     every block counts its share of the tokens and tells all ranks
//   tables    with the counts of all blocks of all ranks, every block knows where its rows begin everywhere
//   place     every assignment gets its row; one record per (token, rank) goes to the receiver
//   describe  when all records are there, the receiver's description is made of them
#include <type_traits>

#include "dispatch/cuda/device/signals.cuh"
#include "dispatch/cuda/device/start_kernel.cuh"
#include "dispatch/cuda/engine/few_launch.hpp"
#include "dispatch/cuda/engine/kernels.hpp"
#include "dispatch/cuda/engine/launch.hpp"
#include "dispatch/cuda/prepare/few_tokens.cuh"
#include "dispatch/cuda/prepare/prepare_describe.cuh"
#include "dispatch/cuda/prepare/prepare_place.cuh"
#include "dispatch/cuda/prepare/prepare_tables.cuh"

namespace epistle::cuda {
namespace {

template <class Args>
inline constexpr int kThreadsFor = std::is_same_v<Args, FewPrepareArgs> ? kFewThreads : kPrepareThreads;

__device__ inline void tell_host(const PrepareArgs& args, const CallContext& call, const Tables& t,
                                 const Exchange& exchange, const Received& mine) {
  write_counts(args, call, t, exchange, mine, *args.summary);
  if (threadIdx.x == 0) publish_summary(args);
}

/// Behind count_share(). `bad`: this thread has seen a bad id.
template <class Args>
__device__ __forceinline__ void exchange_counts(const Args& args, const CallContext& call, const Tables& t, bool bad) {
  constexpr int kThreads = kThreadsFor<Args>;
  const DeviceGroup& group = args.group;
  const int ranks = group.num_ranks;
  const int experts = group.control.num_experts;
  tell_counts<kThreads>(args, call, t, __syncthreads_or(bad) != 0);
  Exchange exchange;
  if (!compute_tables<kThreads>(args, call, t, exchange)) return;
  const auto count_tokens = [&] {
    for (int e = threadIdx.x; e < experts && !exchange.refused; e += kThreads) {
      count_expert_tokens(args, e, t.counts[ranks + e]);
    }
  };
  const Received mine = received(args, t, exchange);
  const bool overflow = exchange.overflow_rank >= 0;
  if (blockIdx.x == 0 && threadIdx.x / 32 == (kThreads / 32) - 1) write_totals(args, call, t, exchange, mine);
  // First the places, which a dispatch behind this prepare waits for, then everything else. A share of one tile keeps
  // its tables in between; others go through their tiles once.
  PlaceCounts counts;
  const Share share = block_share(args.handle.num_tokens);
  const bool one_tile = share.end - share.begin <= t.tile_tokens;
  if (!one_tile) count_tokens();  // whose counts are those of a tile afterwards
  for_each_tile<kThreads>(args, t, [&](const Tile& tile) {
    place_tile<kThreads>(args, t, exchange, tile, counts);
    if (!one_tile) {
      __syncthreads();
      record_tile<kThreads>(args, t, exchange, tile, counts);
    }
  });
  // Starts the dispatch, which waits for the places itself. Not sooner: it would hold its SMs for nothing.
  let_next_kernel_start();
  tell_placed(args, call, exchange.refused);
  if (one_tile)
    for_each_tile<kThreads>(args, t, [&](const Tile& tile) { record_tile<kThreads>(args, t, exchange, tile, counts); });
  bool last = false;
  if (overflow) {
    // What became of this rank's assignments is known when all of its blocks have placed theirs.
    add_counts(args, counts);
    last = is_last_block(&group.local->blocks_recorded);
    if (last) send_outcome<kThreads>(args);
  }
  if (!exchange.disagreed) signal_done<true>(call);
  // While the records of the others are on their way. (The fences before would wait for what is added up.)
  if (one_tile) count_tokens();
  if (!args.layout.token_major()) describe_groups<kThreads>(args, t, exchange, mine);
  if (blockIdx.x == 0 && !overflow) tell_host(args, call, t, exchange, mine);
  if (!exchange.disagreed) {
    wait_all_done(call);
  } else if (blockIdx.x == 0) {
    abandon_call(call, false);  // the summary tells the host
  }
  fence_system();
  __syncthreads();
  if (has_failed(group)) return;
  if (args.layout.token_major()) {
    describe_token_rows<kThreads>(args, mine);
  } else {
    describe_expert_rows<kThreads>(args, mine);
  }
  if (last && overflow) tell_host(args, call, t, exchange, mine);
}

/// The same where a rank that has few tokens goes with others that have many, or nothing may be placed. Of its own, so
/// that what comes once in a long while takes no registers from the rest.
__device__ __noinline__ void exchange_counts_after_all(const FewPrepareArgs& args, CallContext call, Tables t,
                                                       bool bad) {
  exchange_counts(args, call, t, bad);
}

/// kPlaced: experts are placed. The kernel of those that are not is another one, and does nothing for it.
template <bool kPlaced, class Args>
__device__ __forceinline__ void prepare(const Args& args, std::byte* shared) {
  constexpr bool kFew = std::is_same_v<Args, FewPrepareArgs>;
  constexpr int kThreads = kThreadsFor<Args>;
  const DeviceGroup& group = args.group;
  wait_for_start(group);
  // All loads at once: every wait for memory counts here.
  EarlyEntries early;
  early.load<kThreads>(args);
  const CallStart start{.call = args.call, .phase = Phase::kLayout, .buffer = kFew ? kTellsTokens : 0};
  const NextCall next(group, start);
  const int ranks = group.num_ranks;
  const int experts = group.control.num_experts;
  Tables t;
  carve(shared, {ranks, experts, args.handle.top_k, args.handle.sends_per_token, args.tile_tokens}, t);
#pragma unroll 1
  for (int e = threadIdx.x; e < experts; e += kThreads) {
    t.rank_of[e] = static_cast<std::uint8_t>(args.layout.partition().rank_of(e));
    t.total[e] = 0;
  }
  if (threadIdx.x == 0) *t.routed = early.routed;
#pragma unroll 1
  for (int c = threadIdx.x; c < ranks + experts; c += kThreads) {
    t.counts[c] = 0;
    t.base[c] = 0;
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < ranks * ranks; i += kThreads) t.tokens[i] = 0;
#pragma unroll 1
  for (int d = threadIdx.x; d < ranks; d += kThreads) {
    t.first[d] = args.layout.partition().first_expert(d);
    t.records[d] = group.section(d, BufferSection::kRecords);
  }
  CallContext call;
  if (!next.finish(group, start, call)) return;
  if (blockIdx.x == 0) {
    announce(call);
    if (args.announces_dispatch) announce_early(call, args.follow_buffer);
    // Not at the end, when the next call may be under way.
    if (threadIdx.x == kThreads - 1) clear_queues(call);
  }
  __syncthreads();
  const bool bad = count_share<kPlaced, kThreads>(args, t, early);
  if constexpr (kFew) {
    if (!prepare_few(args, call, t, bad)) exchange_counts_after_all(args, call, t, bad);
  } else {
    exchange_counts(args, call, t, bad);
  }
}

template <bool kPlaced, class Args>
__global__ void __launch_bounds__(kThreadsFor<Args>, 1) prepare_kernel(const __grid_constant__ Args args) {
  extern __shared__ __align__(16) std::byte shared[];
  prepare<kPlaced>(args, shared);
}

template <class Args>
using PrepareKernel = void (*)(Args);
template <class Args>
PrepareKernel<Args> prepare_kernel_for(bool placed) noexcept {
  return placed ? prepare_kernel<true, Args> : prepare_kernel<false, Args>;
}

template <class Args>
cudaError_t start(const Args& args, const PrepareLaunch& launch, cudaStream_t stream) {
  return start_kernel(prepare_kernel_for<Args>(args.places_experts()),
                      {launch.num_blocks, kThreadsFor<Args>, launch.shared_bytes}, args.group.early_start, args,
                      stream);
}

}  // namespace

std::int64_t prepare_shared_bytes(const PrepareShape& shape, int tile_tokens) noexcept {
  Tables t;
  const int num_sends = shape.top_k < shape.num_ranks ? shape.top_k : shape.num_ranks;
  return carve(nullptr, {shape.num_ranks, shape.num_experts, shape.top_k, num_sends, tile_tokens}, t);
}

std::int64_t few_prepare_shared_bytes(const PrepareShape& shape, int tile_tokens) noexcept {
  return prepare_shared_bytes(shape, tile_tokens) + static_cast<std::int64_t>(sizeof(FewTables));
}

PrepareTile choose_prepare_tile(const PrepareShape& shape, std::int64_t max_shared_bytes) noexcept {
  for (int tile_tokens = kMaxTileTokens; tile_tokens >= 32; tile_tokens /= 2) {
    const std::int64_t bytes = prepare_shared_bytes(shape, tile_tokens);
    if (bytes <= max_shared_bytes) return {.num_tokens = tile_tokens, .shared_bytes = bytes};
  }
  return {.num_tokens = 0, .shared_bytes = prepare_shared_bytes(shape, 32)};
}

const void* prepare_kernel_address(bool placed, bool few) noexcept {
  return few ? reinterpret_cast<const void*>(prepare_kernel_for<FewPrepareArgs>(placed))
             : reinterpret_cast<const void*>(prepare_kernel_for<PrepareArgs>(placed));
}

cudaError_t launch_prepare(const PrepareArgs& args, const PrepareLaunch& launch, cudaStream_t stream) {
  return start(args, launch, stream);
}
cudaError_t launch_few_prepare(const FewPrepareArgs& args, const PrepareLaunch& launch, cudaStream_t stream) {
  return start(args, launch, stream);
}

}  // namespace epistle::cuda
