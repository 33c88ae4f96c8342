// Rows on their way from tokens to experts: dispatch, and the backward pass of combine.
//
// Remote blocks write each row once per (token, rank) to its final place in the peer's memory; the other blocks write
// the rows that stay, and, in expert layouts, duplicate received rows for the token's other local experts as they
// arrive. Split by destination, local stores do not queue behind those that cross the link.
#include <type_traits>

#include "dispatch/cuda/device/bulk.cuh"
#include "dispatch/cuda/device/peer_rows.cuh"
#include "dispatch/cuda/device/received_pairs.cuh"
#include "dispatch/cuda/device/rows.cuh"
#include "dispatch/cuda/device/signals.cuh"
#include "dispatch/cuda/device/start_kernel.cuh"
#include "dispatch/cuda/direct/kernels.hpp"
#include "dispatch/cuda/direct/unflagged_tokens.cuh"

namespace epistle::cuda {
namespace {

/// Copies with 16-byte loads and stores: a row is where it belongs, for this warp, when copy() returns.
class VectorCopier {
 public:
  __device__ explicit VectorCopier(std::byte* /*shared*/) {}
  __device__ void copy(unsigned mask, std::byte* target, const std::byte* from, std::int64_t num_bytes) {
    copy_row_to(mask, target, from, num_bytes);
  }
  __device__ void flush() {}
  /// Rows that copy() has been given and that are where they belong.
  __device__ std::uint32_t mark() { return 0; }
  __device__ bool is_past(std::uint32_t /*mark*/) const { return true; }
  __device__ void settle() {}
  /// Rows that may wait for their flag.
  __device__ int batch_for(std::int64_t /*row_bytes*/) const { return 1; }
};

#if EPISTLE_BULK_COPIES
/// Copies through shared memory, several parts at a time.
class BulkCopier {
 public:
  __device__ explicit BulkCopier(std::byte* shared)
      : pipe_(reinterpret_cast<BulkRing*>(shared)[threadIdx.x / kWarpSize]) {}
  __device__ void copy(unsigned mask, std::byte* target, const std::byte* from, std::int64_t num_bytes) {
    // Unaligned payloads cannot go by bulk copies.
    if ((reinterpret_cast<std::uint64_t>(from) & 15U) != 0) return copy_row_to(mask, target, from, num_bytes);
    pipe_.copy(mask, target, from, num_bytes);
  }
  __device__ void flush() {
    pipe_.flush();
    if (lane_id() == 0) wait_stored<0>();
    __syncwarp();
    settled_ = pipe_.num_stored();
  }
  __device__ std::uint32_t mark() { return pipe_.num_loaded(); }
  __device__ bool is_past(std::uint32_t mark) const { return static_cast<std::int32_t>(settled_ - mark) >= 0; }
  /// Waits for all stores but those of the last two parts.
  __device__ void settle() {
    if (lane_id() == 0) wait_stored<2>();
    __syncwarp();
    settled_ = pipe_.num_stored() - 2;
  }
  __device__ int batch_for(std::int64_t row_bytes) const {
    return row_bytes > 2 * kPartBytes ? 1 : row_bytes > kPartBytes ? 2 : 4;
  }

 private:
  BulkPipe pipe_;
  std::uint32_t settled_ = 0;
};
#else
using BulkCopier = VectorCopier;
#endif

/// Where the call puts rows and their scales. In shared memory.
struct MoveTargets {
  PeerRows rows;
  PeerRows scales;

  __device__ void init(const MoveArgs& args) {
    rows.init(args.group, args.target, args.buffer);
    scales.init(args.group, BufferSection::kReceiveScales, args.buffer);
  }
  __device__ void follow(const MoveArgs& args, int peer, std::uint64_t word) {
    rows.follow(args.group, args.target, peer, word);
    scales.follow(args.group, BufferSection::kReceiveScales, peer, word);
  }
};

template <class Copier, class Args>
struct Mover {
  static constexpr bool kColumns = std::is_same_v<Args, ColumnMoveArgs>;

  const Args& args;
  const CallContext& call;
  const MoveTargets& targets;
  Copier& copier;

  __device__ const DeviceGroup& group() const { return args.group; }
  __device__ std::byte* row_at(int rank, std::int32_t row) const {
    return targets.rows.begin[rank] + row * args.row_bytes;
  }
  __device__ std::byte* scales_at(int rank, std::int32_t row) const {
    return targets.scales.begin[rank] + row * args.scale_bytes;
  }

  /// Copies one row to the places of the lanes in `mask`, each lane's own in (rank, row). `kSpaced`: the scales lie as
  /// args.strides says, otherwise dense.
  template <bool kSpaced>
  __device__ void copy(unsigned mask, std::int32_t rank, std::int32_t row, const std::byte* from,
                       const std::byte* scales) const {
    if (mask == 0) return;
    const bool mine = (mask >> lane_id() & 1U) != 0;
    copier.copy(mask, mine ? row_at(rank, row) : nullptr, from, args.row_bytes);
    if (args.scale_bytes == 0) return;
    if constexpr (kColumns) {
      // Given scales are those that were quantised before, in dense rows; received ones lie in columns.
      if constexpr (kSpaced) {
        copy_scales(mask, rank, row, [&](int word) { return reinterpret_cast<const std::uint32_t*>(scales)[word]; });
        return;
      }
    }
    std::byte* target = mine ? scales_at(rank, row) : nullptr;
    if (kSpaced && !args.strides.has_dense_scales()) {
      gather_row_to(mask, target,
                    {scales, args.strides.scale_column, args.strides.scale_element_bytes, args.scale_bytes});
    } else {
      copy_row_to(mask, target, scales, args.scale_bytes);
    }
  }
  /// Words of scales, as `read(word)` gives them, to the columns of the lanes in `mask`.
  template <typename Read>
  __device__ void copy_scales(unsigned mask, std::int32_t rank, std::int32_t row, const Read& read) const {
    const auto num_words = static_cast<int>(args.scale_bytes / ScalePlaces::kWordBytes);
#pragma unroll 1
    for (int first = 0; first < num_words; first += kWarpSize) {
      const int word = first + lane_id();
      const std::uint32_t value = word < num_words ? read(word) : 0;
#pragma unroll 1
      for (unsigned left = mask; left != 0; left &= left - 1) {
        const int lane = __ffs(static_cast<int>(left)) - 1;
        const std::int32_t to_rank = __shfl_sync(kFullWarp, rank, lane);
        const std::int32_t to_row = __shfl_sync(kFullWarp, row, lane);
        if (word < num_words) *scale_word(to_rank, to_row, word) = value;
      }
    }
  }
  [[nodiscard]] __device__ std::uint32_t* scale_word(int rank, std::int32_t row, int word) const {
    const ScalePlaces at = args.layout.scale_places(args.num_rows[rank]);
    return reinterpret_cast<std::uint32_t*>(targets.scales.begin[rank] + at.offset(row, word));
  }

  __device__ void copy_token(unsigned mask, std::int32_t rank, std::int32_t row, std::int64_t token) const {
    copy<true>(mask, rank, row, args.rows + token * args.strides.row,
               args.scale_bytes > 0 ? args.scales + token * args.strides.scale_row : nullptr);
  }

  __device__ SendPlace send_of(std::int64_t token, int nth) const {
    if (nth >= args.handle.sends_per_token) return {-1, -1, -1, -1};
    return args.handle.sends[token * args.handle.sends_per_token + nth];
  }
  __device__ bool leaves(const SendPlace& send) const { return send.dst_rank >= 0 && send.dst_rank != group().rank; }

  /// Tells the receivers that the rows of a token are there, where they wait for single rows.
  __device__ void flag_token(std::int64_t token) const {
    for (int first = 0; first < args.handle.sends_per_token; first += kWarpSize) {
      const SendPlace send = send_of(token, first + lane_id());
      if (!leaves(send)) continue;
      std::uint32_t* flags =
          group().template control_at<std::uint32_t>(send.dst_rank, group().control.pair_flags_offset());
      store_release(flags + send.pair, call.epoch);
    }
  }

  /// While nothing may be written yet.
  __device__ void prefetch_first(const Worker& worker) const {
    if (worker.idx >= args.handle.num_tokens) return;
    prefetch_row(args.rows + worker.idx * args.strides.row, args.row_bytes);
  }

  /// Rows for peers, and with `own_too` the ones that stay as well: one read for all copies of a token.
  __device__ void send_rows(const Worker& worker, bool own_too) const {
    const int batch = copier.batch_for(args.row_bytes);
    UnflaggedTokens unflagged;
    UnitQueue units(work_queue(call, kSentTokens), worker);
    for (std::int64_t token = units.take(); token < args.handle.num_tokens; token = units.take()) {
      for (int first = 0; first < args.handle.sends_per_token; first += kWarpSize) {
        const SendPlace send = send_of(token, first + lane_id());
        const bool wanted = own_too ? send.dst_rank >= 0 : leaves(send);
        copy_token(__ballot_sync(kFullWarp, wanted), send.dst_rank, send.row, token);
      }
      if (args.layout.token_major()) continue;
      unflagged.add(token, copier.mark());
      if (unflagged.count() <= batch) continue;
      copier.settle();
      flag_settled(unflagged);
      if (!unflagged.full()) continue;
      copier.flush();
      flag_settled(unflagged);
    }
    copier.flush();
    flag_settled(unflagged);
  }
  /// Flags the tokens whose rows have left, oldest first.
  __device__ void flag_settled(UnflaggedTokens& unflagged) const {
    __syncwarp();
    while (unflagged.count() > 0 && copier.is_past(unflagged.oldest_mark())) flag_token(unflagged.take_oldest());
  }

  __device__ void keep_local(const Worker& worker) const {
    const int top_k = args.handle.top_k;
    const ExpertPartition partition = args.layout.partition();
    const std::int32_t first_expert = partition.first_expert(group().rank);
    const std::int32_t end_expert = first_expert + partition.num_local_experts(group().rank);
    UnitQueue units(work_queue(call, kKeptTokens), worker);
    for (std::int64_t token = units.take(); token < args.handle.num_tokens; token = units.take()) {
      const int count = args.layout.token_major() ? args.handle.sends_per_token : top_k;
      for (int first = 0; first < count; first += kWarpSize) {
        const int i = first + lane_id();
        std::int32_t row = -1;
        if (args.layout.token_major()) {
          const SendPlace send = send_of(token, i);
          if (send.dst_rank == group().rank) row = send.row;
        } else if (i < count) {
          const std::int32_t expert = args.handle.expert_ids[token * top_k + i];
          if (expert >= first_expert && expert < end_expert) row = args.handle.dst_row[token * top_k + i];
        }
        copy_token(__ballot_sync(kFullWarp, row >= 0), group().rank, row, token);
      }
    }
  }

  /// Duplicates one received row for the token's other experts here.
  __device__ void duplicate(std::int32_t pair, int source) const {
    const auto* flags =
        group().template control_at<const std::uint32_t>(group().rank, group().control.pair_flags_offset());
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
      if constexpr (kColumns) {
        if (mask == 0) continue;
        copier.copy(mask, (mask >> lane_id() & 1U) != 0 ? row_at(group().rank, row) : nullptr,
                    row_at(group().rank, primary), args.row_bytes);
        copy_scales(mask, group().rank, row, [&](int word) { return *scale_word(group().rank, primary, word); });
        continue;
      }
      copy<false>(mask, group().rank, row, row_at(group().rank, primary),
                  args.scale_bytes > 0 ? scales_at(group().rank, primary) : nullptr);
    }
  }
  /// Takes received pairs from a queue that all blocks share, sources in turn.
  __device__ void duplicate_received() const {
    const HandleTotals& totals = *args.handle.totals;
    const int others = group().num_ranks - 1;
    if (others == 0) return;
    const int longest = longest_source(group(), totals);
    while (true) {
      unsigned unit = 0;
      if (lane_id() == 0) unit = atomicAdd(work_queue(call, kReceivedPairs), 1U);
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
      if constexpr (kColumns) {
        for (int word = lane_id(); word < args.scale_bytes / ScalePlaces::kWordBytes; word += kWarpSize) {
          *scale_word(group().rank, static_cast<std::int32_t>(row), word) = 0;
        }
        continue;
      }
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
    const std::int32_t* begins = args.handle.expert_begin;
    for (int local = 0; local < num_local; ++local) {
      zero_range(begins[local] + args.handle.expert_counts[local], begins[local + 1], worker);
    }
    zero_range(begins[num_local], totals.num_rows, worker);
  }
};

/// What a dispatch that follows its prepare closely waits for, before it knows the number of its own call.
struct CloselyBehind {
  std::uint64_t announced = 0;  ///< by the prepare of rank threadIdx.x

  /// Waits until the prepare of the same handle has placed all rows, and begins the call behind it. False when there is
  /// none: prepare has failed, or its routing is void on all ranks.
  __device__ bool begin(const MoveArgs& args, CallContext& call) {
    const DeviceGroup& group = args.group;
    const LocalState& local = *group.local;
    __shared__ std::uint32_t placed_epoch;
    __shared__ bool is_void;
    bool failed = false;
    const int thread = static_cast<int>(threadIdx.x);
    // The announcements have been there for long; asked for here, they cost no time of their own.
    if (thread < group.num_ranks) announced = load_relaxed(early_flag(group, group.rank, thread));
    if (thread < args.prepare_blocks) {
      // Words of an earlier prepare of this handle, by a graph, are older than the dispatch that followed that.
      const std::uint32_t followed = __ldcg(&local.followed);
      const auto expected =
          static_cast<std::uint32_t>(call_word(0, DeviceCall::kPrepareAndDispatch, args.handle.handle_id));
      const auto refused = static_cast<std::uint32_t>(call_word(0, DeviceCall::kRejected, args.handle.handle_id));
      std::uint64_t word = 0;
      const auto is_placed = [&] {
        word = load_relaxed(&local.placed[thread]);
        const auto what = static_cast<std::uint32_t>(word);
        return (what == expected || what == refused) && !reached(followed, epoch_of(word));
      };
      while (!is_placed() && !failed) failed = has_failed(group);
      fence_device();
      if (thread == 0) {
        placed_epoch = epoch_of(word);
        is_void = rejects(word);
      }
    }
    failed = __syncthreads_or(failed) != 0;
    const std::uint32_t epoch = placed_epoch + 1;
    call = {&group, epoch, call_word(epoch, args.call, placed_epoch, args.buffer), Phase::kDispatch};
    if (!failed && !is_void) return true;
    // The kernel behind this one relies on what is before it being over.
    wait_for_kernel_before();
    if (!failed && leaves_last(group)) group.local->followed = placed_epoch;
    return false;
  }

  /// As wait_all_ready(), for rows that nobody reads before the end of the call.
  template <typename See>
  __device__ bool wait_all_ready(const CallContext& call, const See& see) const {
    const int peer = static_cast<int>(threadIdx.x);
    bool ok = true;
    if (peer < call.group->num_ranks) {
      // A peer that calls prepare and dispatch one by one announces the second only when it comes.
      const std::uint64_t word = same_but_choices(announced, call.announced) ? announced : await_word(call, peer);
      ok = same_but_choices(word, call.announced);
      see(peer, word);
    }
    return agree_on_words(call, ok, see);
  }
};
static_assert(kMaxRanks <= kMoveThreads && kMaxRanks <= kBulkThreads, "a thread for the announcement of every rank");

template <class Copier, class Args>
__device__ void move_rows(const Args& args, std::byte* shared) {
  const DeviceGroup& group = args.group;
  const int block = static_cast<int>(blockIdx.x);
  const int blocks = args.tuning.num_blocks;
  const int remote_blocks = args.tuning.remote_blocks;
  const bool is_remote = block < remote_blocks;
  const bool is_local = !is_remote || remote_blocks == blocks;
  const int local_begin = remote_blocks == blocks ? 0 : remote_blocks;
  const int warps = static_cast<int>(blockDim.x) / kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const Worker remote{warp * remote_blocks + block, remote_blocks * warps};
  const Worker local{warp * (blocks - local_begin) + block - local_begin, (blocks - local_begin) * warps};
  const bool sends = (args.phases & kSendPhase) != 0;
  const bool receives = (args.phases & kReceivePhase) != 0;
  // Few SMs are bound by what they store, so a block that does everything reads each row only once.
  const bool together = remote_blocks == blocks && args.layout.token_major();

  const bool backward = args.target == BufferSection::kCombineRows;
  const Phase phase = backward ? Phase::kCombine : Phase::kDispatch;
  __shared__ MoveTargets targets;
  targets.init(args);
  __syncthreads();  // own rows are served before the peers' words are there
  const auto follow = [&](int peer, std::uint64_t word) { targets.follow(args, peer, word); };
  CallContext call;
  Copier copier(shared);
  const Mover<Copier, Args> mover{args, call, targets, copier};
  CloselyBehind behind;
  if (args.behind_prepare) {
    mover.prefetch_first(is_remote ? remote : local);
    if (!behind.begin(args, call)) return;
  } else {
    wait_for_start(group);
    if (args.skips_void && __ldcg(&args.handle.totals->is_void) != 0) return;
    const CallStart start{.call = args.call, .phase = phase, .handle = args.handle.totals, .buffer = args.buffer};
    if (!next_call(group, start, call)) return;
  }

  bool ok = true;
  bool is_settled = false;  // whether the ranks agree on the call is known in this block
  // Padding of token rows is zeroed while the peers are waited for; behind prepare it is not known yet. That of expert
  // rows is more than a wait has room for.
  const bool zeroes = args.zero_padding && is_local;
  const bool zeroes_early = zeroes && sends && receives && args.layout.token_major() && !args.behind_prepare;
  if (sends) {
    if (block == 0) announce(call);
    // A dispatch may write this rank's own rows before the ranks agree: the last ones have had their time. The rows of
    // combine may be somebody's only copy.
    if (backward || is_remote) {
      if (zeroes_early && !backward) mover.zero_padding(local);
      ok = args.behind_prepare ? behind.wait_all_ready(call, follow) : wait_all_ready(call, follow);
      is_settled = true;
      if (ok && zeroes_early && backward) mover.zero_padding(local);
    } else if (zeroes_early) {
      mover.zero_padding(local);
    }
    if (ok && is_remote) mover.send_rows(remote, together);
    if (ok && is_local && !together) mover.keep_local(local);
    copier.flush();
    // Signals count upwards: those of prepare come first.
    if (args.behind_prepare) wait_for_kernel_before();
    if (ok) signal_done<true>(call);
  }
  if (!receives) {
    if (!ok) give_up_call(call, false, args.send_half);
    return;
  }
  if (leaves_last(group)) {
    // Only now: a block that begins later still has to see that prepare is ahead.
    if (args.behind_prepare) group.local->followed = call.epoch;
    finish_epoch(call);
  }
  if (ok && zeroes && !zeroes_early) mover.zero_padding(local);
  if (!is_settled && (block == 0 || !args.layout.token_major())) ok = wait_all_ready(call);
  if (ok && !args.layout.token_major()) {
    // Local rows have all their places already; only what came from others is left.
    mover.duplicate_received();
    copier.flush();
  }
  if (block == 0) end_call(call, ok);
}

template <class Args>
__global__ void __launch_bounds__(kMoveThreads, 1) move_vector_kernel(const __grid_constant__ Args args) {
  move_rows<VectorCopier>(args, nullptr);
}

template <class Args>
__global__ void __launch_bounds__(kBulkThreads, 1) move_bulk_kernel(const __grid_constant__ Args args) {
  extern __shared__ __align__(128) std::byte shared[];
  move_rows<BulkCopier>(args, shared);
}

template <class Args>
using MoveKernel = void (*)(Args);
template <class Args>
MoveKernel<Args> move_kernel(bool bulk) noexcept {
  return bulk ? move_bulk_kernel<Args> : move_vector_kernel<Args>;
}

template <class Args>
cudaError_t start(const Args& args, cudaStream_t stream) {
  const bool bulk = args.tuning.bulk;
  const std::int64_t shared_bytes = bulk ? static_cast<std::int64_t>(sizeof(BulkRing)) * kBulkWarps : 0;
  return start_kernel(move_kernel<Args>(bulk),
                      {args.tuning.num_blocks, bulk ? kBulkThreads : kMoveThreads, shared_bytes},
                      args.behind_prepare || args.group.early_start, args, stream);
}

}  // namespace

const void* move_kernel_address(bool bulk, bool columns) noexcept {
  return columns ? reinterpret_cast<const void*>(move_kernel<ColumnMoveArgs>(bulk))
                 : reinterpret_cast<const void*>(move_kernel<MoveArgs>(bulk));
}
std::int64_t move_shared_bytes() noexcept { return static_cast<std::int64_t>(sizeof(BulkRing)) * kBulkWarps; }

cudaError_t launch_move(const MoveArgs& args, cudaStream_t stream) { return start(args, stream); }
cudaError_t launch_column_move(const ColumnMoveArgs& args, cudaStream_t stream) { return start(args, stream); }

}  // namespace epistle::cuda
