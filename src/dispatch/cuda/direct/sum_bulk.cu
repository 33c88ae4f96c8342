// combine with bulk copies (sm_90 and later): as sum.cu, but the rows to add come through shared memory (sum_pipe.cuh),
// so that few SMs are enough to keep the link and the memory busy.
#include "dispatch/cuda/device/bulk.cuh"
#include "dispatch/cuda/device/formats.cuh"
#include "dispatch/cuda/device/peer_rows.cuh"
#include "dispatch/cuda/device/rows.cuh"
#include "dispatch/cuda/device/signals.cuh"
#include "dispatch/cuda/device/start_kernel.cuh"
#include "dispatch/cuda/direct/sum_jobs.cuh"
#include "dispatch/cuda/direct/sum_pipe.cuh"
#include "dispatch/cuda/engine/launch.hpp"

namespace epistle::cuda {
namespace {

#if EPISTLE_BULK_COPIES

// Every kind of sum is a kernel of its own: each needs every register of the others' loops.

/// Every token's rows are read where they lie. `Jobs`: TokenRowJobs or FlatRowJobs.
template <class Format, class Jobs>
__device__ void pull_rows(const SumArgs& args, SumSlots& slots) {
  const DeviceGroup& group = args.group;
  __shared__ PeerRows peer_rows;
  peer_rows.init(group, BufferSection::kCombineRows, args.buffer);
  __syncthreads();
  const auto follow = [&](int peer, std::uint64_t word) {
    peer_rows.follow(group, BufferSection::kCombineRows, peer, word);
  };
  wait_for_start(group);
  CallContext call;
  const CallStart start{
      .call = args.call, .phase = Phase::kCombine, .handle = args.handle.totals, .buffer = args.buffer};
  if (!next_call(group, start, call)) return;
  const SumWork work{args, call, &peer_rows};
  const int block = static_cast<int>(blockIdx.x);
  const int blocks = args.tuning.num_blocks;
  if ((args.phases & kSendPhase) != 0 && block == 0) announce(call);
  if ((args.phases & kReceivePhase) == 0) return;
  // Neighbouring rows go to different blocks, so that all of them finish together.
  const Worker worker{static_cast<int>(threadIdx.x) / kWarpSize * blocks + block, blocks * kBulkWarps};
  Jobs jobs{{work, worker}};
  SumPipe<Format, Jobs, false> pipe(slots, jobs, work.row_bytes());
  // With one buffer, where rows lie is known before the peers have said anything.
  const bool one_buffer = args.layout.params().num_buffers == 1;
  if (one_buffer) pipe.prepare();
  if (group.num_ranks > 1 && !wait_all_ready(call, follow)) return give_up_call(call, true, args.send_half);
  if (!one_buffer) pipe.prepare();
  pipe.run();
  // The peers may write new expert outputs when everybody has read.
  signal_done<false>(call);
  leave_call(call);
  if (block == 0) wait_all_done(call);
}

/// The experts' ranks sum first, and push into the stage of the token's rank.
template <class Format>
__device__ void push_rows(const SumArgs& args, SumSlots& slots) {
  const DeviceGroup& group = args.group;
  wait_for_start(group);
  CallContext call;
  const CallStart start{
      .call = args.call, .phase = Phase::kCombine, .handle = args.handle.totals, .buffer = args.buffer};
  if (!next_call(group, start, call)) return;
  const SumWork work{args, call};
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int block = static_cast<int>(blockIdx.x);
  const int blocks = args.tuning.num_blocks;
  const int push_blocks = args.tuning.push_blocks;
  const bool pushes = block < push_blocks;
  const bool finishes = !pushes || push_blocks == blocks;
  const int finish_begin = push_blocks == blocks ? 0 : push_blocks;
  const Worker pusher{warp * push_blocks + block, push_blocks * kBulkWarps};
  const Worker finisher{warp * (blocks - finish_begin) + block - finish_begin, (blocks - finish_begin) * kBulkWarps};

  const bool receives = (args.phases & kReceivePhase) != 0;
  const bool pushes_here = (args.phases & kSendPhase) != 0 && pushes && group.num_ranks > 1;
  if ((args.phases & kSendPhase) != 0) {
    if (block == 0) announce(call);
    if (pushes_here) {
      if (!wait_all_ready(call)) return give_up_call(call, receives, args.send_half);
      PartialJobs jobs{work, PairSequence(work, pusher)};
      SumPipe<Format, PartialJobs, false> pipe(slots, jobs, work.row_bytes());
      pipe.prepare();
      pipe.run();
    }
    signal_done<true>(call);
  }
  if (!receives) return;
  const bool is_settled = pushes_here || group.num_ranks == 1 || (!finishes && block != 0);
  if (!is_settled && !wait_all_ready(call)) return give_up_call(call, true, args.send_half);
  if (finishes) {
    StageJobs jobs{{work, finisher}};
    SumPipe<Format, StageJobs, true> pipe(slots, jobs, work.row_bytes());
    pipe.prepare();
    pipe.run();
  }
  leave_call(call);
  if (block == 0) wait_all_done(call);
}

#endif  // EPISTLE_BULK_COPIES

template <class Format, SumKind kKind>
__global__ void __launch_bounds__(kBulkThreads, 1) sum_bulk_kernel(const __grid_constant__ SumArgs args) {
#if EPISTLE_BULK_COPIES
  extern __shared__ __align__(128) std::byte shared[];
  SumSlots& slots = reinterpret_cast<SumSlots*>(shared)[threadIdx.x / kWarpSize];
  if constexpr (kKind == SumKind::kTokenRows) {
    pull_rows<Format, TokenRowJobs>(args, slots);
  } else if constexpr (kKind == SumKind::kFlatRows) {
    pull_rows<Format, FlatRowJobs>(args, slots);
  } else {
    push_rows<Format>(args, slots);
  }
#endif
}

}  // namespace

template <class Format>
auto kernel_for(SumKind kind) noexcept {
  return kind == SumKind::kTokenRows  ? &sum_bulk_kernel<Format, SumKind::kTokenRows>
         : kind == SumKind::kFlatRows ? &sum_bulk_kernel<Format, SumKind::kFlatRows>
                                      : &sum_bulk_kernel<Format, SumKind::kStagedRows>;
}

const void* sum_bulk_kernel_address(DType dtype, SumKind kind) noexcept {
  return with_format(dtype,
                     [kind](auto format) { return reinterpret_cast<const void*>(kernel_for<decltype(format)>(kind)); });
}
std::int64_t sum_bulk_shared_bytes() noexcept { return static_cast<std::int64_t>(sizeof(SumSlots)) * kBulkWarps; }

cudaError_t launch_sum_bulk(const SumArgs& args, cudaStream_t stream) {
  const SumKind kind = !args.pull                  ? SumKind::kStagedRows
                       : args.layout.token_major() ? SumKind::kTokenRows
                                                   : SumKind::kFlatRows;
  return with_format(args.dtype, [&](auto format) {
    return start_kernel(kernel_for<decltype(format)>(kind),
                        {args.tuning.num_blocks, kBulkThreads, sum_bulk_shared_bytes()}, args.group.early_start, args,
                        stream);
  });
}

}  // namespace epistle::cuda
