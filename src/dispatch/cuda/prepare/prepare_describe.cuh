// prepare, third part: what the receiver knows of its rows, made of the records that all ranks have sent, and what the
// host is told.
//
// Where all rows fit, all of it but the rows themselves follows from the counts. Otherwise every rank also tells the
// others what became of its assignments (its outcome).
#pragma once

#include <cstddef>

#include "dispatch/cuda/prepare/prepare_tables.cuh"

namespace epistle::cuda {

/// By the last block of a rank with an overflow somewhere: tells every rank what became of this rank's assignments.
template <int kThreads = kPrepareThreads>
__device__ inline void send_outcome(const PrepareArgs& args) {
  const DeviceGroup& group = args.group;
  const int ranks = group.num_ranks;
  const ExpertPartition partition = args.layout.partition();
  for (int peer = 0; peer < ranks; ++peer) {
    const Voice voice = group.voice_to(peer);
    const bool masked = voice.source != group.rank;
    std::int32_t* out = group.control_at<std::int32_t>(voice.rank, group.control.outcomes_offset()) +
                        std::int64_t{voice.source} * group.control.outcome_entries();
    for (int d = threadIdx.x; d < ranks; d += kThreads) out[d] = masked ? 0 : __ldcg(&group.outcome[d]);
    for (int local = threadIdx.x; local < partition.num_local_experts(voice.rank); local += kThreads) {
      const int expert = partition.first_expert(voice.rank) + local;
      out[ranks + local] = masked ? 0 : __ldcg(&group.outcome[ranks + expert]);
    }
    if (threadIdx.x == 0) {
      out[ranks + group.control.max_local_experts()] =
          masked ? 0 : static_cast<std::int32_t>(__ldcg(&group.local->dropped));
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < ranks + group.control.num_experts; i += kThreads) group.outcome[i] = 0;
}

/// What this rank receives, the same in all blocks.
struct Received {
  std::int32_t num_pairs;
  std::int32_t num_rows;
};

__device__ inline Received received(const PrepareArgs& args, const Tables& t, const Exchange& exchange) {
  const int ranks = args.group.num_ranks;
  std::int64_t pairs = 0;
  for (int s = 0; s < ranks; ++s) pairs += t.tokens[s * ranks + args.group.rank];
  return {exchange.refused ? 0 : clip(pairs, pair_limit(args.layout)), t.out_rows[args.group.rank]};
}

/// Totals that later kernels need, by one warp.
__device__ inline void write_totals(const PrepareArgs& args, const CallContext& call, const Tables& t,
                                    const Exchange& exchange, const Received& mine) {
  const int ranks = args.group.num_ranks;
  const int rank = args.group.rank;
  HandleTotals& totals = *args.handle.totals;
  const std::int64_t limit = exchange.refused ? 0 : pair_limit(args.layout);
  for (int s = static_cast<int>(threadIdx.x) & 31; s <= ranks; s += 32) {
    std::int64_t begin = 0;
    for (int before = 0; before < s; ++before) begin += t.tokens[before * ranks + rank];
    totals.pair_begin[s] = clip(begin, limit);
    if (s == ranks) continue;
    std::int32_t stage = 0;
    for (int r = 0; r < rank; ++r) stage += r != s ? t.tokens[s * ranks + r] : 0;
    totals.stage_begin[s] = stage;
  }
  if ((threadIdx.x & 31) == 0) {
    totals.prepared = call.epoch;
    totals.is_void = exchange.refused ? 1 : 0;
    totals.num_pairs = mine.num_pairs;
    totals.num_rows = mine.num_rows;
    if (args.layout.token_major()) totals.content_rows = mine.num_pairs;
  }
}

// ---- Rows -----------------------------------------------------------------------------------------------------------

__device__ inline const std::uint32_t* own_records(const PrepareArgs& args) {
  return reinterpret_cast<const std::uint32_t*>(args.group.section(args.group.rank, BufferSection::kRecords));
}

template <int kThreads = kPrepareThreads>
__device__ inline void describe_token_rows(const PrepareArgs& args, const Received& mine) {
  const auto top_k = static_cast<unsigned>(args.handle.top_k);
  const auto record_words = static_cast<unsigned>(args.layout.pair_record_bytes() / 4);
  const std::uint32_t* records = own_records(args);
  const unsigned step = gridDim.x * kThreads;
  const unsigned count = static_cast<unsigned>(mine.num_rows) * top_k;
  // Rows and positions advance by the same steps every time: one division.
  const unsigned row_step = step / top_k;
  const unsigned position_step = step - row_step * top_k;
  unsigned i = blockIdx.x * kThreads + threadIdx.x;
  unsigned row = i / top_k;
  unsigned position = i - row * top_k;
#pragma unroll 4
  for (; i < count; i += step) {
    const bool content = row < static_cast<unsigned>(mine.num_pairs);
    const std::uint32_t* record = records + std::size_t{row} * record_words;
    args.handle.local_expert_ids[i] = content ? static_cast<std::int32_t>(__ldcg(record + 2 + position)) : -1;
    args.handle.row_weights[i] = content ? __uint_as_float(__ldcg(record + 2 + top_k + position)) : 0.0F;
    if (position == 0) {
      const uint2 header = content ? __ldcg(reinterpret_cast<const uint2*>(record)) : make_uint2(~0U, ~0U);
      args.handle.src_rank[row] = static_cast<std::int32_t>(header.x);
      args.handle.src_token[row] = static_cast<std::int32_t>(header.y);
    }
    row += row_step;
    position += position_step;
    if (position >= top_k) {
      position -= top_k;
      ++row;
    }
  }
}

__device__ inline void describe_padding(const PrepareArgs& args, std::int64_t begin, std::int64_t end, int first,
                                        int step) {
  for (std::int64_t row = begin + first; row < end; row += step) {
    args.handle.src_rank[row] = -1;
    args.handle.src_token[row] = -1;
    args.handle.row_expert[row] = -1;
    args.handle.row_weights[row] = 0.0F;
  }
}

/// Rows of an expert of this rank that have a place.
__device__ inline std::int32_t kept_rows(const PrepareArgs& args, const Tables& t, const Exchange& exchange,
                                         int expert) {
  if (exchange.refused) return 0;
  const std::int64_t room = row_end(args.layout, t.group[expert]) - t.group[expert];
  return clip(t.total[expert], room > 0 ? room : 0);
}

/// What follows from the counts alone: the expert of every row, and the padding behind each group and behind the last
/// one. Needs no record.
template <int kThreads = kPrepareThreads>
__device__ inline void describe_groups(const PrepareArgs& args, const Tables& t, const Exchange& exchange,
                                       const Received& mine) {
  const ExpertPartition partition = args.layout.partition();
  const int first_expert = partition.first_expert(args.group.rank);
  const int num_local = partition.num_local_experts(args.group.rank);
  const int warp = static_cast<int>(blockIdx.x) * (kThreads / 32) + static_cast<int>(threadIdx.x) / 32;
  const int num_warps = static_cast<int>(gridDim.x) * (kThreads / 32);
  // Few experts have many rows each: several warps for every one of them.
  const int warps_per_expert = max(1, num_warps / max(1, num_local));
  const int lane = warp % warps_per_expert * 32 + (static_cast<int>(threadIdx.x) & 31);
  const int step = warps_per_expert * 32;
  for (int local = warp / warps_per_expert; local < num_local; local += num_warps / warps_per_expert) {
    const int expert = first_expert + local;
    const std::int64_t begin = t.group[expert];
    const std::int64_t kept_end = begin + kept_rows(args, t, exchange, expert);
    const std::int64_t end = min(begin + args.layout.group_rows(t.total[expert]), std::int64_t{mine.num_rows});
    if (lane == 0) args.handle.clean_rows[local] = 0;
    for (std::int64_t row = begin + lane; row < kept_end; row += step) args.handle.row_expert[row] = local;
    describe_padding(args, kept_end, end, lane, step);
  }
  std::int64_t last_end = 0;
  if (num_local > 0) {
    const int last = first_expert + num_local - 1;
    last_end = std::int64_t{t.group[last]} + args.layout.group_rows(t.total[last]);
  }
  describe_padding(args, last_end, mine.num_rows, static_cast<int>(blockIdx.x * kThreads + threadIdx.x),
                   static_cast<int>(gridDim.x) * kThreads);
}

template <int kThreads = kPrepareThreads>
__device__ inline void describe_expert_rows(const PrepareArgs& args, const Received& mine) {
  const auto top_k = static_cast<unsigned>(args.handle.top_k);
  const unsigned units = 1 + top_k;  // of 8 bytes
  const std::uint32_t* records = own_records(args);
  auto* copies = reinterpret_cast<uint2*>(args.handle.pair_records);
  const unsigned step = gridDim.x * kThreads;
  const unsigned count = static_cast<unsigned>(mine.num_pairs) * units;
#pragma unroll 2
  for (unsigned i = blockIdx.x * kThreads + threadIdx.x; i < count; i += step) {
    const unsigned pair = i / units;
    const unsigned unit = i - pair * units;
    const std::uint32_t* record = records + std::size_t{pair} * units * 2;
    const uint2 value = __ldcg(reinterpret_cast<const uint2*>(record) + unit);
    copies[i] = value;
    if (unit == 0) continue;
    const uint2 header = __ldcg(reinterpret_cast<const uint2*>(record));
    const auto describe = [&](unsigned word, std::uint32_t content) {
      const auto row = static_cast<std::int32_t>(content);
      if (word >= top_k || row < 0) return;
      args.handle.src_rank[row] = static_cast<std::int32_t>(header.x);
      args.handle.src_token[row] = static_cast<std::int32_t>(header.y);
      args.handle.row_weights[row] = __uint_as_float(__ldcg(record + 2 + top_k + word));
    };
    describe(2 * unit - 2, value.x);
    describe(2 * unit - 1, value.y);
  }
}

// ---- Counts for the caller and the host -----------------------------------------------------------------------------

/// Assignments of all ranks to a local expert that did not fit.
__device__ inline std::int32_t dropped_of(const PrepareArgs& args, int local) {
  const DeviceGroup& group = args.group;
  const auto* outcomes = group.control_at<const std::int32_t>(group.rank, group.control.outcomes_offset());
  std::int32_t dropped = 0;
  for (int s = 0; s < group.num_ranks; ++s) {
    dropped += __ldcg(outcomes + s * group.control.outcome_entries() + group.num_ranks + local);
  }
  return dropped;
}

/// What the host must hear of a routing that is refused, or part of which does not fit. By one thread.
__device__ __noinline__ inline void find_fault(const PrepareArgs& args, const CallContext& call,
                                               const Exchange& exchange, Summary& summary) {
  const DeviceGroup& group = args.group;
  Finding finding = Finding::kNone;
  summary.peer = -1;
  const unsigned long long bad_entry = __ldcg(&group.local->first_bad_entry);
  if (bad_entry != 0) {
    finding = Finding::kBadId;
    summary.a = static_cast<std::int64_t>(~bad_entry);
    const std::int64_t bad_token = summary.a / args.handle.top_k;
    summary.b = read_id(args, bad_token * args.id_stride + summary.a % args.handle.top_k);
    if (summary.b >= 0 && summary.b < args.num_experts) finding = Finding::kRepeatedId;
  } else if (exchange.disagreed) {
    const Verdict verdict = verdict_of(call);
    finding = verdict.outcome == Verdict::Outcome::kRejected ? Finding::kPeerRejected : Finding::kCallMismatch;
    summary.rank = verdict.rank;
    summary.peer = verdict.peer;
    summary.a = static_cast<std::int64_t>(verdict.word);
    summary.b = static_cast<std::int64_t>(verdict.peer_word);
  } else if (exchange.refusing_rank >= 0) {
    finding = Finding::kPeerRejected;
    summary.peer = exchange.refusing_rank;
  } else if (exchange.overflow_rank >= 0 && !args.drop_overflow) {
    finding = Finding::kOverflow;
    summary.peer = exchange.overflow_rank;
    summary.a = exchange.overflow_rows;
  }
  summary.finding = static_cast<std::uint32_t>(finding);
  group.local->first_bad_entry = 0;
}

/// Counts per local expert and the summary, by one block; with an overflow only when all outcomes are there. `summary`:
/// in host memory, or kept on the device.
__device__ inline void write_counts(const PrepareArgs& args, const CallContext& call, const Tables& t,
                                    const Exchange& exchange, const Received& mine, Summary& summary) {
  const DeviceGroup& group = args.group;
  const int ranks = group.num_ranks;
  const ExpertPartition partition = args.layout.partition();
  const int first_expert = partition.first_expert(group.rank);
  const int num_local = partition.num_local_experts(group.rank);
  const bool token_major = args.layout.token_major();
  const bool overflow = exchange.overflow_rank >= 0;
  const auto* outcomes = group.control_at<const std::int32_t>(group.rank, group.control.outcomes_offset());
  const std::int32_t stride = group.control.outcome_entries();
  __shared__ int content_rows;
  __shared__ int dropped_here;
  __shared__ int lost;
  if (threadIdx.x == 0) {
    content_rows = token_major ? mine.num_pairs : 0;
    dropped_here = 0;
    lost = 0;
  }
  __syncthreads();
  if (group.num_masked != 0 && !exchange.refused) count_lost(args, *t.routed, lost);
  auto* pairs = reinterpret_cast<std::int32_t*>(&summary + 1);
  std::int32_t* output_rows = pairs + ranks * ranks;
  std::int32_t* other_pairs = output_rows + ranks;
  std::int32_t* told_counts = other_pairs + ranks;
  for (int local = threadIdx.x; local < num_local; local += static_cast<int>(blockDim.x)) {
    const int expert = first_expert + local;
    const std::int32_t dropped = overflow && !exchange.refused ? dropped_of(args, local) : 0;
    const std::int32_t kept = exchange.refused ? 0 : t.total[expert] - dropped;
    args.handle.expert_counts[local] = kept;
    told_counts[local] = kept;
    args.handle.expert_dropped[local] = dropped;
    if (dropped > 0) atomicAdd(&dropped_here, dropped);
    if (token_major) continue;
    if (kept > 0) atomicAdd(&content_rows, kept);
    // Groups beyond the capacity are empty and begin at its end.
    const std::int32_t begin = min(t.group[expert], mine.num_rows);
    args.handle.expert_begin[local] = begin;
    if (local == num_local - 1) {
      args.handle.expert_begin[num_local] = clip(begin + args.layout.group_rows(kept), mine.num_rows);
    }
  }
  if (num_local == 0 && !token_major && threadIdx.x == 0) args.handle.expert_begin[0] = 0;
  for (int i = threadIdx.x; i < ranks * ranks; i += static_cast<int>(blockDim.x)) {
    pairs[i] = exchange.refused ? 0 : overflow ? __ldcg(outcomes + (i / ranks) * stride + i % ranks) : t.tokens[i];
  }
  for (int r = threadIdx.x; r < ranks; r += static_cast<int>(blockDim.x)) {
    output_rows[r] = t.out_rows[r];
    std::int32_t others = 0;
    for (int d = 0; d < ranks; ++d) others += d != r ? t.tokens[r * ranks + d] : 0;
    other_pairs[r] = others;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  args.handle.totals->content_rows = content_rows;
  summary.content_rows = content_rows;
  summary.num_rows = mine.num_rows;
  summary.padding_rows = mine.num_rows - content_rows;
  summary.sent_remote_assignments =
      overflow ? __ldcg(&group.local->sent_remote_assignments) : exchange.remote_assignments;
  summary.dropped_by_this_rank = overflow ? __ldcg(&group.local->dropped) : 0;
  summary.dropped_here = dropped_here;
  summary.lost_by_this_rank = lost;
  summary.num_tokens = *t.routed;
  std::int64_t in_group = 0;
  for (int s = 0; s < ranks && overflow && !exchange.refused; ++s) {
    in_group += __ldcg(outcomes + s * stride + ranks + group.control.max_local_experts());
  }
  summary.dropped_in_group = in_group;
  summary.peer = -1;
  summary.finding = static_cast<std::uint32_t>(Finding::kNone);
  if (exchange.refused || overflow) find_fault(args, call, exchange, summary);
  group.local->dropped = 0;
  group.local->sent_remote_assignments = 0;
}

/// Tells the host that the summary is there. By the thread that has written the last of it.
__device__ inline void publish_summary(const PrepareArgs& args) {
  __threadfence_system();
  *static_cast<volatile std::uint64_t*>(&args.summary->prepare_id) = args.prepare_id;
}

/// The whole of a summary to the host, but for the ids, which are written by themselves.
__device__ inline void tell_finding(const PrepareArgs& args, const Summary& summary) {
  constexpr std::size_t kBegin = offsetof(Summary, finding);
  const int ranks = args.group.num_ranks;
  const auto num_words = static_cast<int>((sizeof(Summary) - kBegin) / 4) + ranks * ranks + 2 * ranks;
  const auto* from = reinterpret_cast<const std::uint32_t*>(reinterpret_cast<const std::byte*>(&summary) + kBegin);
  auto* to = reinterpret_cast<std::uint32_t*>(reinterpret_cast<std::byte*>(args.summary) + kBegin);
#pragma unroll 1
  for (int i = 0; i < num_words; ++i) to[i] = from[i];
}

/// Says that the handle's summary is there, for when the host asks. By the thread that has written the last of it.
__device__ inline void leave_summary(const PrepareArgs& args) {
  fence_device();
  *static_cast<volatile std::uint64_t*>(&args.handle.summary->passed_id) = args.prepare_id;
}

}  // namespace epistle::cuda
