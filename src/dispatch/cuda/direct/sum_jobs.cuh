// What a warp sums in combine: partial sums for other ranks' stages, and the tokens of its own rank.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dispatch/cuda/device/peer_rows.cuh"
#include "dispatch/cuda/device/received_pairs.cuh"
#include "dispatch/cuda/device/signals.cuh"
#include "dispatch/cuda/direct/sum_pipe.cuh"
#include "dispatch/cuda/engine/launch.hpp"

namespace epistle::cuda {

#if EPISTLE_BULK_COPIES

/// Where the n-th (from 0) set bit of `mask` is; some number below 32 where there are fewer.
__device__ inline int nth_bit(unsigned mask, int n) {
  int at = 0;
#pragma unroll
  for (int width = kWarpSize / 2; width > 0; width /= 2) {
    const int below = __popc(mask >> at & ((1U << width) - 1));
    if (below > n) continue;
    n -= below;
    at += width;
  }
  return at;
}

/// What all jobs of a kernel share.
struct SumWork {
  const SumArgs& args;
  const CallContext& call;
  const PeerRows* peer_rows = nullptr;  ///< where rows are pulled

  __device__ const DeviceGroup& group() const { return args.group; }
  __device__ std::int64_t row_bytes() const { return args.layout.params().combine_row_bytes; }
  __device__ const std::byte* own_row(std::int32_t row) const { return args.rows + row * row_bytes(); }

  /// Moves the lanes that have a term to the front.
  __device__ static Terms compact(bool has, Terms terms) {
    const unsigned mask = __ballot_sync(kFullWarp, has);
    // Lane i takes from the i-th set bit.
    const int source = nth_bit(mask, lane_id());
    terms.address = __shfl_sync(kFullWarp, terms.address, source);
    terms.weight = __shfl_sync(kFullWarp, terms.weight, source);
    terms.count = __popc(mask);
    return terms;
  }
};

/// Received pairs in the order in which they are served: sources in turn, so that every source's tokens complete at the
/// same pace.
struct PairSequence {
  const SumWork& work;
  Worker worker;
  int longest = 0;

  __device__ PairSequence(const SumWork& sum_work, const Worker& one) : work(sum_work), worker(one) {
    longest = longest_source(work.group(), *work.args.handle.totals);
  }
  __device__ int others() const { return work.group().num_ranks - 1; }
  __device__ int count() const {
    const int units = longest * others();
    return worker.idx < units ? (units - worker.idx + worker.count - 1) / worker.count : 0;
  }
  /// The pair of a job, -1 = none; and its source.
  __device__ std::int32_t pair(int job, int& source) const {
    const HandleTotals& totals = *work.args.handle.totals;
    const int unit = worker.idx + job * worker.count;
    source = (work.group().rank + 1 + unit % others()) % work.group().num_ranks;
    const std::int32_t pair = totals.pair_begin[source] + unit / others();
    return pair < totals.pair_begin[source + 1] ? pair : -1;
  }
  __device__ std::int32_t stage_row(std::int32_t pair, int source) const {
    const HandleTotals& totals = *work.args.handle.totals;
    return totals.stage_begin[source] + pair - totals.pair_begin[source];
  }
  __device__ std::byte* stage(std::int32_t pair, int source) const {
    return work.group().section(source, BufferSection::kStageRows) + stage_row(pair, source) * work.row_bytes();
  }
  __device__ void flag(std::int32_t pair, int source) const {
    std::uint32_t* flags = work.group().control_at<std::uint32_t>(source, work.group().control.stage_flags_offset());
    store_release(flags + stage_row(pair, source), work.call.epoch);
  }
};

/// Partial sums over the experts here, for the stages of other ranks.
struct PartialJobs {
  const SumWork& work;
  PairSequence sequence;

  __device__ int count() const { return sequence.count(); }
  __device__ bool failed() const { return false; }
  __device__ Terms terms_again(int job) const { return terms(job); }
  __device__ Terms terms(int job) const {
    Terms terms;
    int source = 0;
    const std::int32_t pair = sequence.pair(job, source);
    std::int32_t row = -1;
    const int top_k = work.args.handle.top_k;
    if (pair >= 0 && lane_id() < top_k) {
      const auto* record = reinterpret_cast<const std::int32_t*>(work.args.handle.pair_records +
                                                                 pair * work.args.layout.pair_record_bytes());
      row = record[2 + lane_id()];
      if (row >= 0) {
        terms.address = reinterpret_cast<std::uint64_t>(work.own_row(row));
        if (work.args.weighted) terms.weight = __int_as_float(record[2 + top_k + lane_id()]);
      }
    }
    return SumWork::compact(row >= 0, terms);
  }
  __device__ std::byte* target(int job) const {
    int source = 0;
    const std::int32_t pair = sequence.pair(job, source);
    // A job without a pair has no terms either; its zeros must not land anywhere.
    return pair >= 0 ? sequence.stage(pair, source) : nullptr;
  }
  __device__ void finish(int job) const {
    __syncwarp();
    if (lane_id() != 0) return;
    int source = 0;
    const std::int32_t pair = sequence.pair(job, source);
    if (pair >= 0) sequence.flag(pair, source);
  }
};

/// The tokens of this rank that a warp sums. What they are summed from is left to the kinds of jobs below, each of them
/// with a loop of its own: a loop that could do either would be slower at both.
struct OwnTokens {
  const SumWork& work;
  Worker worker;

  __device__ int count() const {
    const auto tokens = static_cast<int>(work.args.handle.num_tokens);
    return worker.idx < tokens ? (tokens - worker.idx + worker.count - 1) / worker.count : 0;
  }
  __device__ std::int64_t token(int job) const { return worker.idx + std::int64_t{job} * worker.count; }
  __device__ std::byte* target(int job) const { return work.args.out + token(job) * work.args.out_stride; }
  __device__ void finish(int /*job*/) const {}
};

/// Token rows: one for each rank that the token went to, read where it lies. Where a token goes is read one token
/// ahead.
struct TokenRowJobs : OwnTokens {
  int early_job = -1;
  SendPlace early_send{-1, -1, -1, -1};
  float early_weight = 0.0F;

  __device__ static bool failed() { return false; }
  __device__ Terms terms(int job) {
    if (job != early_job) read_sends(job);
    const Terms terms = early_terms();
    read_sends(job + 1);
    return terms;
  }
  __device__ Terms terms_again(int job) const {
    TokenRowJobs behind{{work, worker}};
    behind.read_sends(job);
    return behind.early_terms();
  }

 private:
  __device__ Terms early_terms() const {
    Terms terms;
    if (early_send.dst_rank >= 0) {
      const std::byte* rows =
          early_send.dst_rank == work.group().rank ? work.args.rows : work.peer_rows->begin[early_send.dst_rank];
      terms.address = reinterpret_cast<std::uint64_t>(rows + early_send.row * work.row_bytes());
      if (work.args.weighted) terms.weight = early_weight;
    }
    return SumWork::compact(early_send.dst_rank >= 0, terms);
  }

  __device__ void read_sends(int job) {
    const HandleArrays& handle = work.args.handle;
    early_job = job;
    early_send = SendPlace{-1, -1, -1, -1};
    if (job >= count() || lane_id() >= handle.sends_per_token) return;
    const std::int64_t at_send = token(job) * handle.sends_per_token + lane_id();
    early_send = handle.sends[at_send];
    early_weight = handle.send_weights[at_send];
  }
};

/// Flat sums of expert rows: every one where it lies, in top-k order.
struct FlatRowJobs : OwnTokens {
  __device__ static bool failed() { return false; }
  __device__ Terms terms_again(int job) const { return terms(job); }
  __device__ Terms terms(int job) const {
    const HandleArrays& handle = work.args.handle;
    Terms terms;
    std::int32_t row = -1;
    if (lane_id() < handle.top_k) {
      const std::int64_t entry = token(job) * handle.top_k + lane_id();
      row = handle.dst_row[entry];
      if (row >= 0) {
        const int rank = work.args.layout.partition().rank_of(handle.expert_ids[entry]);
        terms.address = reinterpret_cast<std::uint64_t>(work.peer_rows->begin[rank] + row * work.row_bytes());
        if (work.args.weighted) terms.weight = handle.weights[entry];
      }
    }
    return SumWork::compact(row >= 0, terms);
  }
};

/// Hierarchical sums of expert rows: of this rank's own rows, and of what the other ranks push into its stage.
struct StageJobs : OwnTokens {
  bool given_up = false;

  __device__ bool failed() const { return given_up; }
  __device__ Terms terms_again(int job) { return terms(job); }
  __device__ Terms terms(int job) {
    if (given_up) return Terms{};
    const HandleArrays& handle = work.args.handle;
    SendPlace send{-1, -1, -1, -1};
    if (lane_id() < handle.sends_per_token) send = handle.sends[token(job) * handle.sends_per_token + lane_id()];
    const bool remote = send.dst_rank >= 0 && send.dst_rank != work.group().rank;
    bool there = true;
    if (remote) {
      const auto* flags =
          work.group().control_at<const std::uint32_t>(work.group().rank, work.group().control.stage_flags_offset());
      there = wait_for_flag(work.call, send.dst_rank, flags + send.stage);
    }
    given_up = __all_sync(kFullWarp, there) == 0;
    if (given_up) return Terms{};
    return expert_rows(job, send);
  }

 private:
  __device__ const std::byte* stage_row(const SendPlace& send) const {
    return work.group().section(work.group().rank, BufferSection::kStageRows) + send.stage * work.row_bytes();
  }

  /// In the order of the sends: stage rows of the ranks before this one, the rows of the experts here as a group, stage
  /// rows of the ranks behind it.
  __device__ Terms expert_rows(int job, const SendPlace& send) const {
    const HandleArrays& handle = work.args.handle;
    const int rank = work.group().rank;
    const ExpertPartition partition = work.args.layout.partition();
    const std::int32_t first_expert = partition.first_expert(rank);
    const std::int32_t end_expert = first_expert + partition.num_local_experts(rank);
    std::int32_t row = -1;
    Terms own;
    if (lane_id() < handle.top_k) {
      const std::int64_t entry = token(job) * handle.top_k + lane_id();
      const std::int32_t expert = handle.expert_ids[entry];
      if (expert >= first_expert && expert < end_expert) row = handle.dst_row[entry];
      if (row >= 0) {
        own.address = reinterpret_cast<std::uint64_t>(work.own_row(row));
        if (work.args.weighted) own.weight = handle.weights[entry];
      }
    }
    own = SumWork::compact(row >= 0, own);
    Terms staged;
    const bool remote = send.dst_rank >= 0 && send.dst_rank != rank;
    if (remote) staged.address = reinterpret_cast<std::uint64_t>(stage_row(send));
    staged = SumWork::compact(remote, staged);
    // Without an own send there are no own rows, and all staged ones come before them.
    const unsigned own_send = __ballot_sync(kFullWarp, send.dst_rank == rank);
    const int before = __popc(__ballot_sync(kFullWarp, remote) & (own_send - 1));
    // Lane i takes term i of: `before` staged ones, all own ones, the other staged ones.
    const int lane = lane_id();
    const bool takes_own = lane >= before && lane < before + own.count;
    const int from = takes_own ? lane - before : lane < before ? lane : lane - own.count;
    const int source = from & (kWarpSize - 1);
    const auto own_address = __shfl_sync(kFullWarp, own.address, source);
    const float own_weight = __shfl_sync(kFullWarp, own.weight, source);
    const auto staged_address = __shfl_sync(kFullWarp, staged.address, source);
    Terms terms;
    terms.address = takes_own ? own_address : staged_address;
    terms.weight = takes_own ? own_weight : 1.0F;
    terms.grouped = __ballot_sync(kFullWarp, takes_own);
    terms.group_ends = own.count > 0 ? 1U << (before + own.count - 1) : 0U;
    terms.count = own.count + staged.count;
    return terms;
  }
};

#endif  // EPISTLE_BULK_COPIES

}  // namespace epistle::cuda
