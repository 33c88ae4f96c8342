// prepare on the device: one kernel from a routing table to a place for every row, on both sides.
//
//   count     every block counts its share of the tokens and tells all ranks
//   tables    with the counts of all blocks of all ranks, every block knows where its rows begin everywhere
//   place     every assignment gets its row; one record per (token, rank) goes to the receiver
//   describe  when all records are there, the receiver's description is made of them
#ifdef EPISTLE_TRACE
#include <cstdio>
#endif
#include "dispatch/cuda/launch.hpp"
#include "dispatch/cuda/prepare_describe.cuh"
#include "dispatch/cuda/prepare_place.cuh"
#include "dispatch/cuda/prepare_tables.cuh"
#include "dispatch/cuda/signals.cuh"

namespace epistle::cuda {
namespace {

constexpr std::uint32_t kPhaseLayout = 4;  // Phase::kLayout

__global__ void __launch_bounds__(kPrepareThreads, 1) prepare_kernel(const __grid_constant__ PrepareArgs args) {
  extern __shared__ __align__(16) std::byte shared[];
  const DeviceGroup& group = args.group;
  // Both at once: every wait for memory counts here.
  const auto failed = *static_cast<volatile std::uint32_t*>(&group.local->failed);
  const auto epoch = static_cast<std::uint32_t>(*static_cast<volatile std::uint64_t*>(&group.local->epoch) + 1);
  if (failed != 0) return;
  TRACE(0);
  const int ranks = group.num_ranks;
  const int experts = group.control.num_experts;
  Tables t;
  carve(shared, {ranks, experts, args.handle.top_k, args.handle.sends_per_token, args.tile_tokens}, t);
  const CallContext call{&group, epoch, call_word(epoch, DeviceCall::kPrepare, args.handle.handle_id), kPhaseLayout};
  if (blockIdx.x == 0) {
    announce(call);
    if (threadIdx.x == 0) *static_cast<volatile std::uint32_t*>(&group.local->placed) = 0;  // a graph has set it before
  }
  for (int e = threadIdx.x; e < experts; e += kPrepareThreads) {
    t.rank_of[e] = static_cast<std::uint8_t>(args.layout.partition().rank_of(e));
    t.total[e] = 0;
  }
  for (int c = threadIdx.x; c < ranks + experts; c += kPrepareThreads) {
    t.counts[c] = 0;
    t.base[c] = 0;
  }
  for (int i = threadIdx.x; i < ranks * ranks; i += kPrepareThreads) t.tokens[i] = 0;
  for (int d = threadIdx.x; d < ranks; d += kPrepareThreads) {
    t.first[d] = args.layout.partition().first_expert(d);
    t.records[d] = group.section(d, BufferSection::kRecords);
  }
  __syncthreads();
  TRACE(1);
  const bool bad = count_share(args, t);
  TRACE(2);
  tell_counts(args, call, t, __syncthreads_or(bad || args.refuse) != 0);
  TRACE(3);
  if (!wait_for_counts(call)) return;
  TRACE(4);
  const Exchange exchange = compute_tables(args, t);
  TRACE(5);
  const Received mine = received(args, t, exchange);
  const bool overflow = exchange.overflow_rank >= 0;
  if (blockIdx.x == 0) write_totals(args, t, exchange, mine);
  TRACE(6);
  place_share(args, t, exchange);
  TRACE(7);
  // A dispatch behind this prepare may start; it waits for `placed` itself.
  cudaTriggerProgrammaticLaunchCompletion();
  const bool last = is_last_block(&group.local->blocks_sent);
  if (last) {
    if (overflow) send_outcome(args);
    __syncthreads();
    signal_done(call);
    if (threadIdx.x == 0) {
      finish_epoch(call);
      fence_device();
      *static_cast<volatile std::uint32_t*>(&group.local->placed) = args.handle.handle_id;
    }
  }
  TRACE(8);
  // While the records of the others are on their way.
  if (!args.layout.token_major()) describe_all_padding(args, t, exchange, mine);
  if (blockIdx.x == 0 && !overflow) write_counts(args, t, exchange, mine);
  TRACE(9);
  wait_all_done(call);
  __syncthreads();
  TRACE(10);
  if (has_failed(group)) return;
  if (args.layout.token_major()) {
    describe_token_rows(args, mine);
  } else {
    describe_expert_rows(args, mine);
  }
  TRACE(11);
  if (last && overflow) write_counts(args, t, exchange, mine);
}

std::int64_t shared_bytes(const PrepareShape& shape, int tile_tokens) {
  Tables t;
  const int slots = shape.top_k < shape.num_ranks ? shape.top_k : shape.num_ranks;
  return carve(nullptr, {shape.num_ranks, shape.num_experts, shape.top_k, slots, tile_tokens}, t);
}

}  // namespace

PrepareTile choose_prepare_tile(const PrepareShape& shape, std::int64_t max_shared_bytes) noexcept {
  for (int tile_tokens = kMaxTileTokens; tile_tokens >= 32; tile_tokens /= 2) {
    const std::int64_t bytes = shared_bytes(shape, tile_tokens);
    if (bytes <= max_shared_bytes) return {.num_tokens = tile_tokens, .shared_bytes = bytes};
  }
  return {.num_tokens = 0, .shared_bytes = shared_bytes(shape, 32)};
}

const void* prepare_kernel_address() noexcept { return reinterpret_cast<const void*>(&prepare_kernel); }

#ifdef EPISTLE_TRACE
void print_trace() {
  long long h[64];
  cudaMemcpyFromSymbol(h, trace_clock, sizeof(h));
  for (int i = 1; i < 12; ++i) printf("%d: %lld  ", i, h[i] - h[i - 1]);
  printf(" total %lld\n", h[11] - h[0]);
}
#endif

cudaError_t launch_prepare(const PrepareArgs& args, const PrepareLaunch& launch, cudaStream_t stream) {
  prepare_kernel<<<launch.num_blocks, kPrepareThreads, static_cast<std::size_t>(launch.shared_bytes), stream>>>(args);
  return cudaGetLastError();
}

}  // namespace epistle::cuda
