// The kernels around copies by the copy engines: signals before and behind them, the runs of a routing, and packing.
#include <climits>

#include "dispatch/cuda/device/rows.cuh"
#include "dispatch/cuda/device/signals.cuh"
#include "dispatch/cuda/direct/copy_launch.hpp"

namespace epistle::cuda {
namespace {

// A thread per rank is enough.
constexpr int kSignalThreads = 96;
static_assert(kSignalThreads >= kMaxRanks);
constexpr int kRunThreads = 256;
constexpr int kPackThreads = 512;
constexpr int kPackWarps = kPackThreads / kWarpSize;

/// The same words as move_kernel's: a rank whose rows go by copy engine and one whose kernel writes them understand
/// each other. Copy engines have one buffer (CopyEngines::can_serve).
__device__ bool dispatch_call(const CopySignalArgs& args, CallContext& call) {
  const CallStart start{.call = DeviceCall::kDispatch, .phase = Phase::kDispatch, .handle = args.totals};
  const bool ok = next_call(args.group, start, call);
  call.announced |= kCopiesBit;
  return ok;
}

__global__ void __launch_bounds__(kSignalThreads, 1) start_copies_kernel(const __grid_constant__ CopySignalArgs args) {
  CallContext call;
  if (!dispatch_call(args, call)) return;
  announce(call);
  static_cast<void>(wait_all_ready(call));
}

__global__ void __launch_bounds__(kSignalThreads, 1) finish_copies_kernel(const __grid_constant__ CopySignalArgs args) {
  CallContext call;
  if (!dispatch_call(args, call)) return;
  // Copies and packing come before this kernel in stream order, so they are complete and performed: the release of the
  // signal carries them. Pairs with the acquire in wait_all_done of the peers.
  if ((args.phases & kSendPhase) != 0) signal_done<true>(call);
  if ((args.phases & kReceivePhase) == 0) return;
  end_call(call, wait_all_ready(call));
  __syncthreads();
  if (threadIdx.x == 0) finish_epoch(call);
}

// ---- Runs -----------------------------------------------------------------------------------------------------------

__device__ std::int32_t row_at(const HandleArrays& handle, std::int64_t token, std::int32_t dst_rank) {
  const SendPlace* sends = handle.sends + token * handle.sends_per_token;
  for (int nth = 0; nth < handle.sends_per_token; ++nth) {
    if (sends[nth].dst_rank == dst_rank) return sends[nth].row;
  }
  return -1;
}

/// Rows of one source at one destination are consecutive in the order of tokens, so the starts of the runs say all.
__global__ void __launch_bounds__(kRunThreads, 1) find_runs_kernel(const __grid_constant__ RunListArgs args) {
  const HandleArrays& handle = args.handle;
  __shared__ int num_starts;
  __shared__ int first_row;
  for (int dst_rank = static_cast<int>(blockIdx.x); dst_rank < args.num_ranks;
       dst_rank += static_cast<int>(gridDim.x)) {
    if (threadIdx.x == 0) {
      num_starts = 0;
      first_row = INT_MAX;
    }
    __syncthreads();
    for (int chunk = 0; chunk < args.num_chunks; ++chunk) {
      const std::int64_t end = chunk_begin(handle.num_tokens, args.num_chunks, chunk + 1);
      int num_rows = 0;
      for (std::int64_t tile = chunk_begin(handle.num_tokens, args.num_chunks, chunk); tile < end;
           tile += kRunThreads) {
        const std::int64_t token = tile + threadIdx.x;
        const std::int32_t row = token < end ? row_at(handle, token, dst_rank) : -1;
        if (row >= 0 && (token == 0 || row_at(handle, token - 1, dst_rank) < 0)) {
          const int idx = atomicAdd(&num_starts, 1);
          atomicMin(&first_row, row);
          if (idx < kMaxRunStarts) {
            args.list.starts[dst_rank * kMaxRunStarts + idx] = RunStart{static_cast<std::int32_t>(token), row};
          }
        }
        num_rows += __syncthreads_count(row >= 0);
      }
      if (threadIdx.x == 0) args.list.chunk_rows[dst_rank * args.num_chunks + chunk] = num_rows;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      args.list.num_starts[dst_rank] = num_starts;
      args.list.first_row[dst_rank] = num_starts > 0 ? first_row : 0;
    }
    __syncthreads();
  }
}

// ---- Pack -----------------------------------------------------------------------------------------------------------

struct Packer {
  const PackArgs& args;

  __device__ std::byte* place(int rank, std::int32_t row, BufferSection section, std::byte* packed,
                              std::int64_t num_bytes) const {
    if (rank < 0) return nullptr;
    if (rank == args.group.rank) return args.group.section(rank, section) + row * num_bytes;
    return packed + std::int64_t{row + args.row_shift[rank]} * num_bytes;
  }

  /// Each lane has one place of the token, or none.
  __device__ void pack(const SendPlace& send, std::int64_t token) const {
    const unsigned mask = __ballot_sync(kFullWarp, send.dst_rank >= 0);
    if (mask == 0) return;
    copy_row_to(mask, place(send.dst_rank, send.row, BufferSection::kReceiveRows, args.packed_rows, args.row_bytes),
                args.rows + token * args.strides.row, args.row_bytes);
    if (args.scale_bytes == 0) return;
    std::byte* target =
        place(send.dst_rank, send.row, BufferSection::kReceiveScales, args.packed_scales, args.scale_bytes);
    const std::byte* scales = args.scales + token * args.strides.scale_row;
    if (args.strides.has_dense_scales()) {
      copy_row_to(mask, target, scales, args.scale_bytes);
    } else {
      gather_row_to(mask, target,
                    {scales, args.strides.scale_column, args.strides.scale_element_bytes, args.scale_bytes});
    }
  }
};

/// Reads each row of a chunk once; writes it to its final place here and to the send buffer of every peer it goes to.
__global__ void __launch_bounds__(kPackThreads, 1) pack_kernel(const __grid_constant__ PackArgs args) {
  const Packer packer{args};
  const int num_sends = args.handle.sends_per_token;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int blocks = static_cast<int>(gridDim.x);
  // Neighbouring rows go to different blocks, so that all of them finish together.
  for (std::int64_t token = args.token_begin + warp * blocks + blockIdx.x; token < args.token_end;
       token += kPackWarps * blocks) {
    for (int first = 0; first < num_sends; first += kWarpSize) {
      SendPlace send{-1, -1, -1, -1};
      if (first + lane_id() < num_sends) send = args.handle.sends[token * num_sends + first + lane_id()];
      packer.pack(send, token);
    }
  }
}

}  // namespace

cudaError_t load_copy_kernels() {
  return load_kernels({reinterpret_cast<const void*>(&start_copies_kernel),
                       reinterpret_cast<const void*>(&finish_copies_kernel),
                       reinterpret_cast<const void*>(&find_runs_kernel), reinterpret_cast<const void*>(&pack_kernel)});
}

cudaError_t launch_start_copies(const CopySignalArgs& args, cudaStream_t stream) {
  start_copies_kernel<<<1, kSignalThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t launch_finish_copies(const CopySignalArgs& args, cudaStream_t stream) {
  finish_copies_kernel<<<1, kSignalThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t launch_find_runs(const RunListArgs& args, int num_blocks, cudaStream_t stream) {
  find_runs_kernel<<<num_blocks, kRunThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t launch_pack(const PackArgs& args, cudaStream_t stream) {
  pack_kernel<<<args.num_blocks, kPackThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace epistle::cuda
