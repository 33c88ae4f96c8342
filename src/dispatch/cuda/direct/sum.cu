// Rows on their way back: combine, and the backward pass of dispatch.
//
// Pull: every rank reads the rows of its tokens where they lie and adds them: one row per (token, rank) of token_major,
// every expert's row for flat sums of expert rows.
// Push, for sums of expert rows that go by rank first (hierarchical, deepep_v2): the first blocks send the partial sums
// over other ranks' tokens' experts here into the stage of the token's rank and flag them; the other blocks sum this
// rank's tokens as the rows of their stage arrive.
#include "dispatch/cuda/device/formats.cuh"
#include "dispatch/cuda/device/peer_rows.cuh"
#include "dispatch/cuda/device/received_pairs.cuh"
#include "dispatch/cuda/device/rows.cuh"
#include "dispatch/cuda/device/signals.cuh"
#include "dispatch/cuda/device/start_kernel.cuh"
#include "dispatch/cuda/direct/kernels.hpp"
#include "dispatch/cuda/direct/sum_call.cuh"

namespace epistle::cuda {
namespace {

constexpr int kSumWarps = kSumThreads / kWarpSize;
constexpr int kSumVectors = 4;  // 16-byte vectors of a row that a lane sums at once

/// What the alignment of every row of the result follows from.
__device__ std::uint64_t out_bits(const SumArgs& args) {
  return reinterpret_cast<std::uint64_t>(args.out) | static_cast<std::uint64_t>(args.out_stride);
}

/// fp32 sums of kSumVectors vectors of one lane.
template <class Format>
struct Sums {
  float value[kSumVectors][Format::kElements];

  __device__ void clear() {
#pragma unroll
    for (int v = 0; v < kSumVectors; ++v) {
#pragma unroll
      for (int e = 0; e < Format::kElements; ++e) value[v][e] = 0.0F;
    }
  }
  __device__ void add(const uint4 (&row)[kSumVectors], bool weighted, float weight) {
#pragma unroll
    for (int v = 0; v < kSumVectors; ++v) {
      float elements[Format::kElements];
      Format::unpack(row[v], elements);
#pragma unroll
      for (int e = 0; e < Format::kElements; ++e) {
        const float term = weighted ? __fmul_rn(weight, elements[e]) : elements[e];
        value[v][e] = __fadd_rn(value[v][e], term);
      }
    }
  }
  __device__ void pack(uint4 (&row)[kSumVectors]) const {
#pragma unroll
    for (int v = 0; v < kSumVectors; ++v) row[v] = Format::pack(value[v]);
  }
};

/// The part of a row that a lane holds: vectors begin, begin + 32, ...
struct Part {
  int begin;
  int num_vectors;

  __device__ void load(const std::byte* row, uint4 (&v)[kSumVectors]) const {
#pragma unroll
    for (int i = 0; i < kSumVectors; ++i) {
      const int at = begin + i * kWarpSize;
      v[i] =
          at < num_vectors ? load_vector(row + static_cast<std::int64_t>(at) * kVectorBytes) : make_uint4(0, 0, 0, 0);
    }
  }
  __device__ void store(std::byte* row, const uint4 (&v)[kSumVectors], bool aligned) const {
#pragma unroll
    for (int i = 0; i < kSumVectors; ++i) {
      const int at = begin + i * kWarpSize;
      if (at >= num_vectors) continue;
      std::byte* to = row + static_cast<std::int64_t>(at) * kVectorBytes;
      if (aligned) {
        store_vector(to, v[i]);
      } else {
        const auto* bytes = reinterpret_cast<const std::byte*>(&v[i]);
        for (int b = 0; b < kVectorBytes; ++b) to[b] = bytes[b];
      }
    }
  }
  __device__ void load_unaligned(const std::byte* row, uint4 (&v)[kSumVectors]) const {
#pragma unroll
    for (int i = 0; i < kSumVectors; ++i) {
      const int at = begin + i * kWarpSize;
      v[i] = make_uint4(0, 0, 0, 0);
      if (at >= num_vectors) continue;
      auto* bytes = reinterpret_cast<std::byte*>(&v[i]);
      for (int b = 0; b < kVectorBytes; ++b) bytes[b] = row[static_cast<std::int64_t>(at) * kVectorBytes + b];
    }
  }
};

template <class Format>
struct Summer {
  const SumArgs& args;
  const CallContext& call;
  const PeerRows& peer_rows;  ///< that are pulled
  std::int64_t row_bytes;
  bool rows_aligned;
  bool out_aligned;

  __device__ const DeviceGroup& group() const { return args.group; }

  __device__ void load_own(const Part& part, std::int32_t row, uint4 (&v)[kSumVectors]) const {
    const std::byte* from = args.rows + row * row_bytes;
    if (rows_aligned) {
      part.load(from, v);
    } else {
      part.load_unaligned(from, v);
    }
  }

  template <typename Step>
  __device__ void for_each_part(const Step& step) const {
    const int num_vectors = static_cast<int>(row_bytes / kVectorBytes);
    for (int base = 0; base < num_vectors; base += kSumVectors * kWarpSize) step(Part{base + lane_id(), num_vectors});
  }

  /// The sum over a token's experts on this rank, rounded: rows and weights in top-k order, -1 = elsewhere.
  __device__ void partial_sum(const Part& part, const std::int32_t* rows, const float* weights,
                              uint4 (&out)[kSumVectors]) const {
    const int top_k = args.handle.top_k;
    Sums<Format> sums;
    sums.clear();
    for (int first = 0; first < top_k; first += kWarpSize) {
      const int i = first + lane_id();
      const std::int32_t row = i < top_k ? rows[i] : -1;
      const float weight = row >= 0 ? weights[i] : 0.0F;
      for (unsigned left = __ballot_sync(kFullWarp, row >= 0); left != 0; left &= left - 1) {
        const int lane = __ffs(static_cast<int>(left)) - 1;
        uint4 v[kSumVectors];
        load_own(part, __shfl_sync(kFullWarp, row, lane), v);
        sums.add(v, args.weighted, __shfl_sync(kFullWarp, weight, lane));
      }
    }
    sums.pack(out);
  }

  /// Sends what one received pair contributes to its token, to the stage of the token's rank.
  __device__ void push(std::int32_t pair, int source) const {
    const HandleTotals& totals = *args.handle.totals;
    const std::int32_t stage = totals.stage_begin[source] + pair - totals.pair_begin[source];
    std::byte* target = group().section(source, BufferSection::kStageRows) + stage * row_bytes;
    const auto* record =
        reinterpret_cast<const std::int32_t*>(args.handle.pair_records + pair * args.layout.pair_record_bytes());
    for_each_part([&](const Part& part) {
      uint4 v[kSumVectors];
      partial_sum(part, record + 2, reinterpret_cast<const float*>(record + 2 + args.handle.top_k), v);
      part.store(target, v, true);
    });
    __syncwarp();
    if (lane_id() != 0) return;
    std::uint32_t* flags = group().template control_at<std::uint32_t>(source, group().control.stage_flags_offset());
    store_release(flags + stage, call.epoch);
  }

  /// Pairs from all other ranks, sources in turn, so that every source's tokens complete at the same pace.
  __device__ void push_all(const Worker& worker) const {
    const HandleTotals& totals = *args.handle.totals;
    const int others = group().num_ranks - 1;
    if (others == 0) return;
    const int longest = longest_source(group(), totals);
    for (int unit = worker.idx; unit < longest * others; unit += worker.count) {
      const int source = (group().rank + 1 + unit % others) % group().num_ranks;
      const std::int32_t pair = totals.pair_begin[source] + unit / others;
      if (pair < totals.pair_begin[source + 1]) push(pair, source);
    }
  }

  /// Waits until the stage rows of a token's sends (those of the lanes) are there.
  __device__ bool wait_for_stage(const SendPlace& send) const {
    bool there = true;
    if (send.dst_rank >= 0 && send.dst_rank != group().rank) {
      const auto* flags =
          group().template control_at<const std::uint32_t>(group().rank, group().control.stage_flags_offset());
      there = wait_for_flag(call, send.dst_rank, flags + send.stage);
    }
    return __all_sync(kFullWarp, there) != 0;
  }

  /// Sums this rank's tokens from its own rows and its stage.
  __device__ void finish_tokens(const Worker& worker) const {
    const int num_sends = args.handle.sends_per_token;
    const int top_k = args.handle.top_k;
    const std::byte* stage = group().section(group().rank, BufferSection::kStageRows);
    const ExpertPartition partition = args.layout.partition();
    const std::int32_t first_expert = partition.first_expert(group().rank);
    const std::int32_t end_expert = first_expert + partition.num_local_experts(group().rank);
    for (std::int64_t token = worker.idx; token < args.handle.num_tokens; token += worker.count) {
      // More ranks than lanes: the sends are read again for every part, in groups of a warp.
      for (int first = 0; first < num_sends; first += kWarpSize) {
        SendPlace send{-1, -1, -1, -1};
        if (first + lane_id() < num_sends) send = args.handle.sends[token * num_sends + first + lane_id()];
        if (!wait_for_stage(send)) return;
      }
      for_each_part([&](const Part& part) {
        Sums<Format> sums;
        sums.clear();
        for (int first = 0; first < num_sends; first += kWarpSize) {
          const int i = first + lane_id();
          SendPlace send{-1, -1, -1, -1};
          if (i < num_sends) send = args.handle.sends[token * num_sends + i];
          for (unsigned left = __ballot_sync(kFullWarp, send.dst_rank >= 0); left != 0; left &= left - 1) {
            const int lane = __ffs(static_cast<int>(left)) - 1;
            const bool own = __shfl_sync(kFullWarp, send.dst_rank, lane) == group().rank;
            const std::int32_t stage_row = __shfl_sync(kFullWarp, send.stage, lane);
            uint4 v[kSumVectors];
            if (!own) {
              part.load(stage + stage_row * row_bytes, v);
            } else {
              own_partial_sum(part, token, first_expert, end_expert, top_k, v);
            }
            sums.add(v, false, 1.0F);
          }
        }
        uint4 v[kSumVectors];
        sums.pack(v);
        part.store(args.out + token * args.out_stride, v, out_aligned);
      });
    }
  }

  /// As partial_sum, of a token of this rank.
  __device__ void own_partial_sum(const Part& part, std::int64_t token, std::int32_t first_expert,
                                  std::int32_t end_expert, int top_k, uint4 (&out)[kSumVectors]) const {
    Sums<Format> sums;
    sums.clear();
    for (int first = 0; first < top_k; first += kWarpSize) {
      const int i = first + lane_id();
      std::int32_t row = -1;
      float weight = 0.0F;
      if (i < top_k) {
        const std::int32_t expert = args.handle.expert_ids[token * top_k + i];
        if (expert >= first_expert && expert < end_expert) row = args.handle.dst_row[token * top_k + i];
        weight = args.handle.weights[token * top_k + i];
      }
      for (unsigned left = __ballot_sync(kFullWarp, row >= 0); left != 0; left &= left - 1) {
        const int lane = __ffs(static_cast<int>(left)) - 1;
        uint4 v[kSumVectors];
        load_own(part, __shfl_sync(kFullWarp, row, lane), v);
        sums.add(v, args.weighted, __shfl_sync(kFullWarp, weight, lane));
      }
    }
    sums.pack(out);
  }

  /// Sums this rank's tokens from the rows of all ranks: token rows in the order of the sends, expert rows in top-k
  /// order.
  __device__ void pull_tokens(const Worker& worker) const {
    const bool token_major = args.layout.token_major();
    const int count = token_major ? args.handle.sends_per_token : args.handle.top_k;
    const ExpertPartition partition = args.layout.partition();
    for (std::int64_t token = worker.idx; token < args.handle.num_tokens; token += worker.count) {
      for_each_part([&](const Part& part) {
        Sums<Format> sums;
        sums.clear();
        for (int first = 0; first < count; first += kWarpSize) {
          const std::int64_t i = token * count + first + lane_id();
          std::int32_t row = -1;
          std::int32_t rank = 0;
          float weight = 0.0F;
          if (first + lane_id() < count && token_major) {
            const SendPlace send = args.handle.sends[i];
            row = send.row;
            rank = send.dst_rank;
            weight = row >= 0 ? args.handle.send_weights[i] : 0.0F;
          } else if (first + lane_id() < count) {
            row = args.handle.dst_row[i];
            if (row >= 0) {
              rank = partition.rank_of(args.handle.expert_ids[i]);
              weight = args.handle.weights[i];
            }
          }
          for (unsigned left = __ballot_sync(kFullWarp, row >= 0); left != 0; left &= left - 1) {
            const int lane = __ffs(static_cast<int>(left)) - 1;
            const std::byte* rows = peer_rows.begin[__shfl_sync(kFullWarp, rank, lane)];
            uint4 v[kSumVectors];
            part.load(rows + __shfl_sync(kFullWarp, row, lane) * row_bytes, v);
            sums.add(v, args.weighted, __shfl_sync(kFullWarp, weight, lane));
          }
        }
        uint4 v[kSumVectors];
        sums.pack(v);
        part.store(args.out + token * args.out_stride, v, out_aligned);
      });
    }
  }
};

template <class Format>
__global__ void __launch_bounds__(kSumThreads, 1) sum_kernel(const __grid_constant__ SumArgs args) {
  const DeviceGroup& group = args.group;
  __shared__ PeerRows peer_rows;
  peer_rows.init(group, BufferSection::kCombineRows, args.buffer);
  __syncthreads();
  const auto follow = [&](int peer, std::uint64_t word) {
    peer_rows.follow(group, BufferSection::kCombineRows, peer, word);
  };
  CallContext call;
  if (!begin_sum(args, call)) return;
  const Summer<Format> summer{args,
                              call,
                              peer_rows,
                              args.layout.params().combine_row_bytes,
                              (reinterpret_cast<std::uint64_t>(args.rows) & 15U) == 0,
                              (out_bits(args) & 15U) == 0};
  const auto worker_of = [](BlockShare share) {
    return Worker{share.idx * kSumWarps + static_cast<int>(threadIdx.x) / kWarpSize, share.count * kSumWarps};
  };
  if (args.pull) {
    run_pulled_sum(
        args, call, follow, [] {},
        [&] {
          summer.pull_tokens(worker_of({static_cast<int>(blockIdx.x), args.tuning.num_blocks}));
        });
  } else {
    run_pushed_sum(
        args, call, [&](BlockShare share) { summer.push_all(worker_of(share)); },
        [&](BlockShare share) { summer.finish_tokens(worker_of(share)); });
  }
}

}  // namespace

const void* sum_kernel_address(DType dtype) noexcept {
  return with_format(dtype, [](auto format) { return reinterpret_cast<const void*>(&sum_kernel<decltype(format)>); });
}

cudaError_t launch_sum(const SumArgs& args, cudaStream_t stream) {
  return with_format(args.dtype, [&](auto format) {
    return start_kernel(sum_kernel<decltype(format)>, {args.tuning.num_blocks, kSumThreads}, args.group.early_start,
                        args, stream);
  });
}

}  // namespace epistle::cuda
