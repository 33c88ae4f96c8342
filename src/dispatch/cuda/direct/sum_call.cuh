// The protocol of combine, around whatever sums the rows: which blocks do what, and when they wait for whom.
#pragma once

#include "dispatch/cuda/device/rows.cuh"
#include "dispatch/cuda/device/signals.cuh"
#include "dispatch/cuda/engine/launch.hpp"

namespace epistle::cuda {

/// One of the blocks that share a piece of work.
struct BlockShare {
  int idx;
  int count;
};

__device__ inline CallStart sum_call_start(const SumArgs& args) {
  return {.call = args.call, .phase = Phase::kCombine, .handle = args.handle.totals, .buffer = args.buffer};
}
/// False where the call is not to be made. By a kernel that has waited for the one before it.
__device__ inline bool next_sum_call(const SumArgs& args, CallContext& call) {
  return next_call(args.group, sum_call_start(args), call);
}
/// The same, after that wait.
__device__ inline bool begin_sum(const SumArgs& args, CallContext& call) {
  wait_for_start(args.group);
  return next_sum_call(args, call);
}

/// The rows of every token are read where they lie. `follow`: told where each peer's rows are. `prepare()` comes before
/// `sum()`, and before the peers have said anything where they have one buffer only, as it is known then where rows
/// lie.
template <class Follow, class Prepare, class Sum>
__device__ void run_pulled_sum(const SumArgs& args, const CallContext& call, const Follow& follow, Prepare&& prepare,
                               Sum&& sum) {
  const int block = static_cast<int>(blockIdx.x);
  if ((args.phases & kSendPhase) != 0 && block == 0) announce(call);
  if ((args.phases & kReceivePhase) == 0) return;
  const bool one_buffer = args.layout.params().num_buffers == 1;
  if (one_buffer) prepare();
  if (args.group.num_ranks > 1 && !wait_all_ready(call, follow)) return give_up_call(call, true, args.send_half);
  if (!one_buffer) prepare();
  sum();
  // The peers may write new expert outputs when everybody has read.
  signal_done<false>(call);
  complete_call(call);
}

/// The experts' ranks sum first, and push into the stage of the token's rank, which adds what has come: the first
/// push_blocks blocks do the one, the others the other, or all of them both.
template <class Push, class Finish>
__device__ void run_pushed_sum(const SumArgs& args, const CallContext& call, Push&& push, Finish&& finish) {
  const bool several = args.group.num_ranks > 1;
  const int block = static_cast<int>(blockIdx.x);
  const int blocks = args.tuning.num_blocks;
  const int push_blocks = args.tuning.push_blocks;
  const bool pushes = block < push_blocks;
  const bool finishes = !pushes || push_blocks == blocks;
  const int finish_begin = push_blocks == blocks ? 0 : push_blocks;

  const bool receives = (args.phases & kReceivePhase) != 0;
  const bool pushes_here = (args.phases & kSendPhase) != 0 && pushes && several;
  if ((args.phases & kSendPhase) != 0) {
    if (block == 0) announce(call);
    if (pushes_here) {
      if (!wait_all_ready(call)) return give_up_call(call, receives, args.send_half);
      push(BlockShare{block, push_blocks});
    }
    signal_done<true>(call);
  }
  if (!receives) return;
  const bool is_settled = pushes_here || !several || (!finishes && block != 0);
  if (!is_settled && !wait_all_ready(call)) return give_up_call(call, true, args.send_half);
  if (finishes) finish(BlockShare{block - finish_begin, blocks - finish_begin});
  complete_call(call);
}

}  // namespace epistle::cuda
