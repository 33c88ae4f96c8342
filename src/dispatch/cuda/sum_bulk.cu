// combine with bulk copies (sm_90 and later): as sum.cu, but the rows to add come through shared memory (sum_pipe.cuh),
// so that few SMs are enough to keep the link and the memory busy.
#include "dispatch/cuda/bulk.cuh"
#include "dispatch/cuda/formats.cuh"
#include "dispatch/cuda/launch.hpp"
#include "dispatch/cuda/rows.cuh"
#include "dispatch/cuda/signals.cuh"
#include "dispatch/cuda/start_kernel.cuh"
#include "dispatch/cuda/sum_jobs.cuh"
#include "dispatch/cuda/sum_pipe.cuh"

namespace epistle::cuda {
namespace {

#if EPISTLE_BULK_COPIES

template <class Format>
__device__ void sum_rows(const SumArgs& args, SumSlots& slots) {
  const DeviceGroup& group = args.group;
  wait_for_start(group);
  CallContext call;
  if (!next_call(group, args.call, args.handle.totals, Phase::kCombine, call)) return;
  const SumWork work{args, call};
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int block = static_cast<int>(blockIdx.x);
  const int blocks = args.tuning.num_blocks;
  const int push_blocks = args.pull ? 0 : args.tuning.push_blocks;
  const bool pushes = block < push_blocks;
  const bool finishes = !pushes || push_blocks == blocks;
  const int finish_begin = push_blocks == blocks ? 0 : push_blocks;
  // Neighbouring rows go to different blocks, so that all of them finish together.
  const Worker pusher{warp * push_blocks + block, push_blocks * kBulkWarps};
  const Worker finisher{warp * (blocks - finish_begin) + block - finish_begin, (blocks - finish_begin) * kBulkWarps};

  bool ok = true;
  bool is_settled = group.num_ranks == 1;  // whether the ranks agree on the call is known in this block
  if ((args.phases & kSendPhase) != 0) {
    if (block == 0) announce(call);
    if (!args.pull) {
      if (pushes && group.num_ranks > 1) {
        ok = wait_all_ready(call);
        is_settled = true;
        if (ok) {
          PartialJobs jobs{work, PairSequence(work, pusher)};
          SumPipe<Format, PartialJobs, false> pipe(slots, jobs, work.row_bytes());
          pipe.prepare();
          pipe.run();
        }
      }
      if (ok) signal_done<true>(call);
    }
  }
  if ((args.phases & kReceivePhase) == 0) {
    if (!ok && block == 0 && threadIdx.x == 0) report_call(call, args.send_half);
    return;
  }
  if (ok && finishes) {
    TokenJobs jobs{work, finisher};
    if (args.pull) {
      SumPipe<Format, TokenJobs, false> pipe(slots, jobs, work.row_bytes());
      pipe.prepare();  // needs nothing of the peers
      ok = is_settled || wait_all_ready(call);
      if (ok) pipe.run();
    } else {
      ok = is_settled || wait_all_ready(call);
      SumPipe<Format, TokenJobs, true> pipe(slots, jobs, work.row_bytes());
      if (ok) pipe.prepare();
      if (ok) pipe.run();
    }
    is_settled = true;
  }
  if (!is_settled && block == 0) ok = wait_all_ready(call);
  // Pull: the peers may write new expert outputs when everybody has read.
  if (args.pull && ok) signal_done<false>(call);
  leave_call(call);
  if (block == 0) end_call(call, ok);
}

#endif  // EPISTLE_BULK_COPIES

template <class Format>
__global__ void __launch_bounds__(kBulkThreads, 1) sum_bulk_kernel(const __grid_constant__ SumArgs args) {
#if EPISTLE_BULK_COPIES
  extern __shared__ __align__(128) std::byte shared[];
  sum_rows<Format>(args, reinterpret_cast<SumSlots*>(shared)[threadIdx.x / kWarpSize]);
#endif
}

}  // namespace

const void* sum_bulk_kernel_address(DType dtype) noexcept {
  return with_format(dtype,
                     [](auto format) { return reinterpret_cast<const void*>(&sum_bulk_kernel<decltype(format)>); });
}
std::int64_t sum_bulk_shared_bytes() noexcept { return static_cast<std::int64_t>(sizeof(SumSlots)) * kBulkWarps; }

cudaError_t launch_sum_bulk(const SumArgs& args, cudaStream_t stream) {
  return with_format(args.dtype, [&](auto format) {
    return start_kernel(sum_bulk_kernel<decltype(format)>,
                        {args.tuning.num_blocks, kBulkThreads, sum_bulk_shared_bytes()}, args.group.early_start, args,
                        stream);
  });
}

}  // namespace epistle::cuda
