// Rows on their way from tokens to experts: dispatch, and the backward pass of combine.
//
// Remote blocks write each row once per (token, rank) to its final place in the peer's memory; the other blocks write
// the rows that stay, and, in expert layouts, duplicate received rows for the token's other local experts as they
// arrive. Split by destination, local stores do not queue behind those that cross the link.
#include "dispatch/cuda/launch.hpp"
#include "dispatch/cuda/rows.cuh"
#include "dispatch/cuda/signals.cuh"

namespace epistle::cuda {
namespace {

constexpr int kMoveWarps = kMoveThreads / kWarpSize;
constexpr std::uint32_t kPhaseDispatch = 5;  // Phase::kDispatch
constexpr std::uint32_t kPhaseCombine = 6;   // Phase::kCombine

/// A warp's place among the warps that share a kind of work.
struct Worker {
  int idx;
  int count;
};

struct Mover {
  const MoveArgs& args;
  const CallContext& call;
  bool rows_aligned;

  __device__ const DeviceGroup& group() const { return args.group; }
  __device__ std::byte* row_at(int rank, std::int32_t row) const {
    return group().section(rank, args.target) + row * args.row_bytes;
  }
  __device__ std::byte* scales_at(int rank, std::int32_t row) const {
    return group().section(rank, BufferSection::kReceiveScales) + row * args.scale_bytes;
  }

  __device__ void copy(const Fan& fan, const std::byte* row, bool aligned, const std::byte* scales) const {
    if (fan.mask == 0) return;
    copy_row_to(fan, row, args.row_bytes, aligned, [&](int rank, std::int32_t at) { return row_at(rank, at); });
    if (args.scale_bytes == 0) return;
    for (unsigned left = fan.mask; left != 0; left &= left - 1) {
      const int lane = __ffs(static_cast<int>(left)) - 1;
      std::byte* to = scales_at(__shfl_sync(kFullWarp, fan.rank, lane), __shfl_sync(kFullWarp, fan.row, lane));
      copy_any(scales, to, args.scale_bytes,
               common_width(reinterpret_cast<std::uint64_t>(scales), reinterpret_cast<std::uint64_t>(to),
                            static_cast<std::uint64_t>(args.scale_bytes)));
    }
  }
  __device__ void copy_token(const Fan& fan, std::int64_t token) const {
    copy(fan, args.rows + token * args.row_bytes, rows_aligned,
         args.scale_bytes > 0 ? args.scales + token * args.scale_bytes : nullptr);
  }

  /// Tells the receivers that a token's row is there, where they wait for single rows.
  __device__ void flag_rows(unsigned mask, const SendPlace& send) const {
    __syncwarp();
    if ((mask >> lane_id() & 1U) == 0) return;
    __threadfence_system();
    std::uint32_t* flags = group().control_at<std::uint32_t>(send.dst_rank, group().control.pair_flags_offset());
    store_release(flags + send.pair, call.epoch);
  }

  __device__ void send_remote(const Worker& worker) const {
    const int slots = args.handle.sends_per_token;
    const bool flagged = !args.layout.token_major();
    for (std::int64_t token = worker.idx; token < args.handle.num_tokens; token += worker.count) {
      for (int first = 0; first < slots; first += kWarpSize) {
        SendPlace send{-1, -1, -1, -1};
        if (first + lane_id() < slots) send = args.handle.sends[token * slots + first + lane_id()];
        const bool remote = send.dst_rank >= 0 && send.dst_rank != group().rank;
        const Fan fan{__ballot_sync(kFullWarp, remote), send.dst_rank, send.row};
        copy_token(fan, token);
        if (flagged && fan.mask != 0) flag_rows(fan.mask, send);
      }
    }
  }

  __device__ void keep_local(const Worker& worker) const {
    const int slots = args.handle.sends_per_token;
    const int top_k = args.handle.top_k;
    const ExpertPartition partition = args.layout.partition();
    const std::int32_t first_expert = partition.first_expert(group().rank);
    const std::int32_t end_expert = first_expert + partition.num_local_experts(group().rank);
    for (std::int64_t token = worker.idx; token < args.handle.num_tokens; token += worker.count) {
      const int count = args.layout.token_major() ? slots : top_k;
      for (int first = 0; first < count; first += kWarpSize) {
        const int i = first + lane_id();
        std::int32_t row = -1;
        if (i < count && args.layout.token_major()) {
          const SendPlace send = args.handle.sends[token * slots + i];
          if (send.dst_rank == group().rank) row = send.row;
        } else if (i < count) {
          const std::int32_t expert = args.handle.expert_ids[token * top_k + i];
          if (expert >= first_expert && expert < end_expert) row = args.handle.dst_row[token * top_k + i];
        }
        copy_token(Fan{__ballot_sync(kFullWarp, row >= 0), group().rank, row}, token);
      }
    }
  }

  /// Duplicates one received row for the token's other experts here.
  __device__ void duplicate(std::int32_t pair, int source) const {
    const auto* flags = group().control_at<const std::uint32_t>(group().rank, group().control.pair_flags_offset());
    const int top_k = args.handle.top_k;
    const auto* record =
        reinterpret_cast<const std::int32_t*>(args.handle.pair_records + pair * args.layout.pair_record_bytes());
    std::int32_t primary = -1;
    for (int first = 0; first < top_k; first += kWarpSize) {
      const int i = first + lane_id();
      const std::int32_t row = i < top_k ? record[2 + i] : -1;
      unsigned mask = __ballot_sync(kFullWarp, row >= 0);
      if (mask == 0) continue;
      if (primary < 0) {
        const int lane = __ffs(static_cast<int>(mask)) - 1;
        primary = __shfl_sync(kFullWarp, row, lane);
        mask &= mask - 1;
        // Nothing to do for a single row: the end of the call waits for it.
        if (mask == 0 && top_k <= kWarpSize) return;
        const bool there = lane_id() != 0 || wait_for_flag(call, source, flags + pair);
        if (__all_sync(kFullWarp, there) == 0) return;
        __syncwarp();
      }
      copy(Fan{mask, group().rank, row}, row_at(group().rank, primary), true,
           args.scale_bytes > 0 ? scales_at(group().rank, primary) : nullptr);
    }
  }

  /// Takes received pairs from a queue that all blocks share, sources in turn.
  __device__ void duplicate_received() const {
    const HandleTotals& totals = *args.handle.totals;
    const int others = group().num_ranks - 1;
    if (others == 0) return;
    int longest = 0;
    for (int s = 0; s < group().num_ranks; ++s) {
      if (s != group().rank) longest = max(longest, totals.pair_begin[s + 1] - totals.pair_begin[s]);
    }
    while (true) {
      unsigned unit = 0;
      if (lane_id() == 0) unit = atomicAdd(&group().local->next_unit[0], 1U);
      unit = __shfl_sync(kFullWarp, unit, 0);
      if (unit >= static_cast<unsigned>(longest) * others) return;
      const int source = (group().rank + 1 + static_cast<int>(unit) % others) % group().num_ranks;
      const std::int32_t pair = totals.pair_begin[source] + static_cast<std::int32_t>(unit) / others;
      if (pair < totals.pair_begin[source + 1]) duplicate(pair, source);
    }
  }

  __device__ void zero_range(std::int64_t begin, std::int64_t end, const Worker& worker) const {
    for (std::int64_t row = begin + worker.idx; row < end; row += worker.count) {
      zero_row(row_at(group().rank, static_cast<std::int32_t>(row)), args.row_bytes);
      if (args.scale_bytes > 0) zero_row(scales_at(group().rank, static_cast<std::int32_t>(row)), args.scale_bytes);
    }
  }
  __device__ void zero_padding(const Worker& worker) const {
    const HandleTotals& totals = *args.handle.totals;
    if (args.layout.token_major()) {
      zero_range(totals.content_rows, totals.num_rows, worker);
      return;
    }
    const int num_local = args.layout.partition().num_local_experts(group().rank);
    const std::int64_t* begins = args.handle.expert_begin;
    for (int local = worker.idx; local < num_local; local += worker.count) {
      zero_range(begins[local] + args.handle.expert_counts[local], begins[local + 1], Worker{0, 1});
    }
    zero_range(begins[num_local], totals.num_rows, worker);
  }
};

__global__ void __launch_bounds__(kMoveThreads, 1) move_kernel(const __grid_constant__ MoveArgs args) {
  const DeviceGroup& group = args.group;
  if (has_failed(group)) return;
  const bool backward = args.target == BufferSection::kCombineRows;
  const auto epoch = static_cast<std::uint32_t>(group.local->epoch + 1);
  const DeviceCall kind = args.refuse ? DeviceCall::kRejected : backward ? DeviceCall::kCombine : DeviceCall::kDispatch;
  const CallContext call{&group, epoch, call_word(epoch, kind, args.handle.handle_id),
                         backward ? kPhaseCombine : kPhaseDispatch};
  const Mover mover{args, call, (reinterpret_cast<std::uint64_t>(args.rows) & 15U) == 0};
  const int blocks = args.tuning.num_blocks;
  const int remote_blocks = args.tuning.remote_blocks;
  const bool is_remote = static_cast<int>(blockIdx.x) < remote_blocks;
  const bool is_local = !is_remote || remote_blocks == blocks;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int local_begin = remote_blocks == blocks ? 0 : remote_blocks;
  const Worker remote{static_cast<int>(blockIdx.x) * kMoveWarps + warp, remote_blocks * kMoveWarps};
  const Worker local{(static_cast<int>(blockIdx.x) - local_begin) * kMoveWarps + warp,
                     (blocks - local_begin) * kMoveWarps};

  bool ok = true;
  if ((args.phases & kSendPhase) != 0) {
    if (blockIdx.x == 0) announce(call);
    if (args.refuse) {
      ok = false;
    } else {
      if (is_remote) {
        ok = wait_all_ready(call);
        if (ok) mover.send_remote(remote);
      }
      if (is_local) mover.keep_local(local);
    }
    if (is_last_block(&group.local->blocks_sent)) signal_done(call);
  }
  if ((args.phases & kReceivePhase) == 0) return;
  if (!args.refuse) {
    if (is_local && args.zero_padding) mover.zero_padding(local);
    if (!args.layout.token_major()) {
      if (!is_remote) ok = wait_all_ready(call);
      // Local rows have all their places already; only what came from others is left.
      if (ok) mover.duplicate_received();
    }
  }
  if (blockIdx.x == 0) wait_all_done(call);
  __syncthreads();
  if (is_last_block(&group.local->blocks_done) && threadIdx.x == 0 && !has_failed(group)) {
    group.local->next_unit[0] = 0;
    group.local->epoch = epoch;
  }
}

}  // namespace

const void* move_kernel_address() noexcept { return reinterpret_cast<const void*>(&move_kernel); }

cudaError_t launch_move(const MoveArgs& args, cudaStream_t stream) {
  move_kernel<<<args.tuning.num_blocks, kMoveThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace epistle::cuda
