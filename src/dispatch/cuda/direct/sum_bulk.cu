// combine with bulk copies (sm_90 and later): as sum.cu, but the rows to add come through shared memory (sum_pipe.cuh),
// so that few SMs are enough to keep the link and the memory busy.
#include "dispatch/cuda/device/bulk.cuh"
#include "dispatch/cuda/device/formats.cuh"
#include "dispatch/cuda/device/peer_rows.cuh"
#include "dispatch/cuda/device/rows.cuh"
#include "dispatch/cuda/device/start_kernel.cuh"
#include "dispatch/cuda/direct/kernels.hpp"
#include "dispatch/cuda/direct/sum_call.cuh"
#include "dispatch/cuda/direct/sum_jobs.cuh"
#include "dispatch/cuda/direct/sum_pipe.cuh"

namespace epistle::cuda {
namespace {

#if EPISTLE_BULK_COPIES

// Every kind of sum is a kernel of its own: each needs every register of the others' loops.

/// Neighbouring rows go to different blocks, so that all of them finish together.
__device__ inline Worker worker_of(BlockShare share) {
  return {static_cast<int>(threadIdx.x) / kWarpSize * share.count + share.idx, share.count * kBulkWarps};
}

/// `Jobs`: TokenRowJobs or FlatRowJobs.
template <class Format, class Jobs>
__device__ void pull_rows(const SumArgs& args, SumRing& ring) {
  __shared__ PeerRows peer_rows;
  peer_rows.init(args.group, BufferSection::kCombineRows, args.buffer);
  __syncthreads();
  const auto follow = [&](int peer, std::uint64_t word) {
    peer_rows.follow(args.group, BufferSection::kCombineRows, peer, word);
  };
  CallContext call;
  if (!begin_sum(args, call)) return;
  const SumWork work{args, call, &peer_rows};
  Jobs jobs{{work, worker_of({static_cast<int>(blockIdx.x), args.tuning.num_blocks})}};
  SumPipe<Format, Jobs, false> pipe(ring, jobs, work.row_bytes());
  run_pulled_sum(
      args, call, follow, [&] { pipe.prepare(); }, [&] { pipe.run(); });
}

template <class Format>
__device__ void push_rows(const SumArgs& args, SumRing& ring) {
  CallContext call;
  if (!begin_sum(args, call)) return;
  const SumWork work{args, call};
  const auto push = [&](BlockShare share) {
    PartialJobs jobs{work, PairSequence(work, worker_of(share))};
    SumPipe<Format, PartialJobs, false> pipe(ring, jobs, work.row_bytes());
    pipe.prepare();
    pipe.run();
  };
  const auto finish = [&](BlockShare share) {
    StageJobs jobs{{work, worker_of(share)}};
    SumPipe<Format, StageJobs, true> pipe(ring, jobs, work.row_bytes());
    pipe.prepare();
    pipe.run();
  };
  run_pushed_sum(args, call, push, finish);
}

#endif  // EPISTLE_BULK_COPIES

template <class Format, SumKind kKind>
__global__ void __launch_bounds__(kBulkThreads, 1) sum_bulk_kernel(const __grid_constant__ SumArgs args) {
#if EPISTLE_BULK_COPIES
  extern __shared__ __align__(128) std::byte shared[];
  SumRing& ring = reinterpret_cast<SumRing*>(shared)[threadIdx.x / kWarpSize];
  if constexpr (kKind == SumKind::kTokenRows) {
    pull_rows<Format, TokenRowJobs>(args, ring);
  } else if constexpr (kKind == SumKind::kFlatRows) {
    pull_rows<Format, FlatRowJobs>(args, ring);
  } else {
    push_rows<Format>(args, ring);
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
std::int64_t sum_bulk_shared_bytes() noexcept { return static_cast<std::int64_t>(sizeof(SumRing)) * kBulkWarps; }

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
