// combine with bulk copies (sm_90 and later): as sum.cu, but the rows to add come through shared memory. A warp keeps
// several parts of rows on their way, so few SMs are enough to keep the link and the memory busy.
//
// A warp has a list of jobs: sums of some rows (terms) into one row. Parts of terms are loaded in the order in which they
// are added, ahead of the adding by as many as there are slots, across parts and jobs.
#include "dispatch/cuda/bulk.cuh"
#include "dispatch/cuda/formats.cuh"
#include "dispatch/cuda/launch.hpp"
#include "dispatch/cuda/rows.cuh"
#include "dispatch/cuda/signals.cuh"

namespace epistle::cuda {
namespace {

constexpr std::uint32_t kPhaseCombine = 6;  // Phase::kCombine
// 16-byte vectors of a part that a lane adds. Long parts cost fewer instructions; sums with groups need the registers.
constexpr int kPlainVectors = 8;
constexpr int kGroupVectors = 4;
constexpr int kMaxTermSlots = kPartSlots * kPartBytes / (kGroupVectors * kWarpSize * kVectorBytes);

/// Shared memory of a warp.
struct alignas(128) SumSlots {
  std::byte terms[kPartSlots * kPartBytes];
  std::uint64_t term_loaded[kMaxTermSlots];
};

#if EPISTLE_BULK_COPIES

struct Worker {
  int idx;
  int count;
};

/// The rows of one sum: lane i holds term i, in the order of addition.
struct Terms {
  std::uint64_t address = 0;
  float weight = 1.0F;
  // The same in all lanes:
  int count = 0;
  unsigned grouped = 0;     ///< bit i: term i is added to a sum of its own, which is rounded before it counts
  unsigned group_ends = 0;  ///< bit i: term i is the last of its group
};

/// fp32 sums of one part.
template <class Format, int kTermVectors>
struct PartSum {
  float value[kTermVectors][Format::kElements];

  __device__ void clear() {
#pragma unroll
    for (int v = 0; v < kTermVectors; ++v) {
#pragma unroll
      for (int e = 0; e < Format::kElements; ++e) value[v][e] = 0.0F;
    }
  }
  /// The first term starts the sum at +0.
  template <bool kFirst>
  __device__ void add(const uint4 (&row)[kTermVectors], float weight) {
#pragma unroll
    for (int v = 0; v < kTermVectors; ++v) {
      float elements[Format::kElements];
      Format::unpack(row[v], elements);
#pragma unroll
      for (int e = 0; e < Format::kElements; ++e) {
        value[v][e] = __fadd_rn(kFirst ? 0.0F : value[v][e], __fmul_rn(weight, elements[e]));
      }
    }
  }
  /// Rounds to the payload type.
  __device__ void pack(uint4 (&row)[kTermVectors]) const {
#pragma unroll
    for (int v = 0; v < kTermVectors; ++v) row[v] = Format::pack(value[v]);
  }
};

/// Sums rows for a list of jobs. `Jobs` has: int count(); Terms terms(int job), by the whole warp, which waits until they
/// are there; std::byte* target(int job); void finish(int job), when a row is stored; bool failed().
template <class Format, class Jobs, bool kGroups>
class SumPipe {
  static constexpr int kTermVectors = kGroups ? kGroupVectors : kPlainVectors;
  static constexpr int kTermBytes = kTermVectors * kWarpSize * kVectorBytes;
  static constexpr int kTermSlots = kPartSlots * kPartBytes / kTermBytes;

 public:
  __device__ SumPipe(SumSlots& slots, Jobs& jobs, std::int64_t row_bytes)
      : slots_(slots), jobs_(jobs), row_bytes_(static_cast<int>(row_bytes)) {
    if (lane_id() == 0) {
      for (int slot = 0; slot < kTermSlots; ++slot) init_barrier(&slots.term_loaded[slot]);
      fence_async();
    }
    __syncwarp();
  }

  /// Everything is stored, and the slots are free, when it returns.
  __device__ void run() {
    next_job_ = 0;
    load_next_job();
    while (issued_ - consumed_ < kTermSlots && issue()) {
    }
    for (int job = 0; job < jobs_.count(); ++job) {
      const Terms terms = job == loaded_job_ ? ahead_ : jobs_.terms(job);
      if (jobs_.failed()) break;
      std::byte* target = jobs_.target(job);
      if (target == nullptr) continue;
      int at = 0;
      for (; at + kTermBytes <= row_bytes_; at += kTermBytes) add_part<true>(terms, target, at);
      if (at < row_bytes_) add_part<false>(terms, target, at);
      jobs_.finish(job);
    }
    drain();
  }

 private:
  template <bool kFull>
  __device__ void add_part(const Terms& terms, std::byte* target, int at) {
    const int num_vectors = kFull ? kTermVectors * kWarpSize : (row_bytes_ - at) / kVectorBytes;
    PartSum<Format, kTermVectors> sum;
    uint4 row[kTermVectors];
    if constexpr (kGroups) {
      sum.clear();
      add_groups<kFull>(terms, num_vectors, sum);
    } else if (terms.count == 0) {
      sum.clear();
    } else {
      take<kFull>(row, num_vectors);
      sum.template add<true>(row, __shfl_sync(kFullWarp, terms.weight, 0));
      for (int term = 1; term < terms.count; ++term) {
        take<kFull>(row, num_vectors);
        sum.template add<false>(row, __shfl_sync(kFullWarp, terms.weight, term));
      }
    }
    sum.pack(row);
#pragma unroll
    for (int v = 0; v < kTermVectors; ++v) {
      const int vector = v * kWarpSize + lane_id();
      if (kFull || vector < num_vectors) store_vector(target + at + vector * kVectorBytes, row[v]);
    }
  }

  template <bool kFull>
  __device__ void add_groups(const Terms& terms, int num_vectors, PartSum<Format, kTermVectors>& sum) {
    PartSum<Format, kTermVectors> group;
    group.clear();
    for (int term = 0; term < terms.count; ++term) {
      const float weight = __shfl_sync(kFullWarp, terms.weight, term);
      uint4 row[kTermVectors];
      take<kFull>(row, num_vectors);
      if ((terms.grouped >> term & 1U) == 0) {
        sum.template add<false>(row, weight);
        continue;
      }
      group.template add<false>(row, weight);
      if ((terms.group_ends >> term & 1U) == 0) continue;
      group.pack(row);
      sum.template add<false>(row, 1.0F);
      group.clear();
    }
  }

  /// The next part of a term, into registers; its slot is filled again at once.
  template <bool kFull>
  __device__ void take(uint4 (&row)[kTermVectors], int num_vectors) {
    const std::uint32_t idx = consumed_;
    while (!is_loaded(&slots_.term_loaded[idx % kTermSlots], (idx / kTermSlots) & 1U)) {
    }
    const std::byte* part = slot_of(idx) + lane_id() * kVectorBytes;
#pragma unroll
    for (int v = 0; v < kTermVectors; ++v) {
      const bool inside = kFull || v * kWarpSize + lane_id() < num_vectors;
      row[v] = inside ? *reinterpret_cast<const uint4*>(part + v * kWarpSize * kVectorBytes) : make_uint4(0, 0, 0, 0);
    }
    __syncwarp();
    ++consumed_;
    static_cast<void>(issue());
  }

  /// Loads the next part of the next term; false when there is none.
  __device__ bool issue() {
    if (loaded_job_ >= jobs_.count() || jobs_.failed()) return false;
    const auto address = __shfl_sync(kFullWarp, ahead_.address, next_term_);
    if (lane_id() == 0) {
      const auto size = static_cast<std::uint32_t>(min(row_bytes_ - next_at_, kTermBytes));
      load_part(slot_of(issued_), reinterpret_cast<const std::byte*>(address) + next_at_, size,
                &slots_.term_loaded[issued_ % kTermSlots]);
    }
    ++issued_;
    if (++next_term_ < ahead_.count) return true;
    next_term_ = 0;
    next_at_ += kTermBytes;
    if (next_at_ >= row_bytes_) load_next_job();
    return true;
  }

  /// The next job that has terms.
  __device__ void load_next_job() {
    next_at_ = 0;
    next_term_ = 0;
    while (next_job_ < jobs_.count()) {
      loaded_job_ = next_job_++;
      ahead_ = jobs_.terms(loaded_job_);
      if (ahead_.count > 0 || jobs_.failed()) return;
    }
    loaded_job_ = jobs_.count();
  }

  /// After a failure: what was loaded must have arrived before the slots are used again.
  __device__ void drain() {
    for (; consumed_ != issued_; ++consumed_) {
      while (!is_loaded(&slots_.term_loaded[consumed_ % kTermSlots], (consumed_ / kTermSlots) & 1U)) {
      }
    }
    __syncwarp();
  }

  __device__ std::byte* slot_of(std::uint32_t idx) const {
    return slots_.terms + static_cast<std::size_t>(idx % kTermSlots) * kTermBytes;
  }

  SumSlots& slots_;
  Jobs& jobs_;
  int row_bytes_;
  std::uint32_t issued_ = 0;
  std::uint32_t consumed_ = 0;
  Terms ahead_;
  int next_job_ = 0;
  int loaded_job_ = 0;
  int next_at_ = 0;
  int next_term_ = 0;
};

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
    const HandleTotals& totals = *work.args.handle.totals;
    for (int s = 0; s < work.group().num_ranks; ++s) {
      if (s != work.group().rank) longest = max(longest, totals.pair_begin[s + 1] - totals.pair_begin[s]);
    }
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
    std::uint32_t* flags =
        work.group().control_at<std::uint32_t>(source, work.group().control.stage_flags_offset());
    store_release(flags + stage_row(pair, source), work.call.epoch);
  }
};

/// Partial sums over the experts here, for the stages of other ranks.
struct PartialJobs {
  const SumWork& work;
  PairSequence sequence;

  __device__ int count() const { return sequence.count(); }
  __device__ bool failed() const { return false; }
  __device__ Terms terms(int job) const {
    Terms terms;
    int source = 0;
    const std::int32_t pair = sequence.pair(job, source);
    std::int32_t row = -1;
    const int top_k = work.args.handle.top_k;
    if (pair >= 0 && lane_id() < top_k) {
      const auto* record = reinterpret_cast<const std::int32_t*>(
          work.args.handle.pair_records + pair * work.args.layout.pair_record_bytes());
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

/// Sums of this rank's tokens, from its own rows and its stage.
struct TokenJobs {
  const SumWork& work;
  Worker worker;
  bool given_up = false;

  __device__ int count() const {
    const auto tokens = static_cast<int>(work.args.handle.num_tokens);
    return worker.idx < tokens ? (tokens - worker.idx + worker.count - 1) / worker.count : 0;
  }
  __device__ bool failed() const { return given_up; }
  __device__ std::int64_t token(int job) const { return worker.idx + std::int64_t{job} * worker.count; }
  __device__ std::byte* target(int job) const { return work.args.out + token(job) * work.row_bytes(); }
  __device__ void finish(int /*job*/) const {}

  __device__ Terms terms(int job) {
    if (given_up) return Terms{};
    if (work.args.layout.token_major()) return token_rows(job);
    if (work.args.pull) return pulled_terms(job);
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

  /// One row for each rank that the token went to, read where it lies.
  __device__ Terms token_rows(int job) const {
    const HandleArrays& handle = work.args.handle;
    Terms terms;
    SendPlace send{-1, -1, -1, -1};
    if (lane_id() < handle.sends_per_token) {
      const std::int64_t slot = token(job) * handle.sends_per_token + lane_id();
      send = handle.sends[slot];
      if (send.dst_rank >= 0) {
        const std::byte* rows = send.dst_rank == work.group().rank
                                    ? work.args.rows
                                    : work.group().section(send.dst_rank, BufferSection::kCombineRows);
        terms.address = reinterpret_cast<std::uint64_t>(rows + send.row * work.row_bytes());
        if (work.args.weighted) terms.weight = handle.send_weights[slot];
      }
    }
    return SumWork::compact(send.dst_rank >= 0, terms);
  }

  /// Ranks ascending: stage rows of lower ranks, the rows of the experts here as a group, stage rows of higher ranks.
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
    const int lower = __popc(__ballot_sync(kFullWarp, remote && send.dst_rank < rank));
    // Lane i takes term i of: `lower` staged ones, all own ones, the other staged ones.
    const int lane = lane_id();
    const bool takes_own = lane >= lower && lane < lower + own.count;
    const int from = takes_own ? lane - lower : lane < lower ? lane : lane - own.count;
    const int source = from & (kWarpSize - 1);
    const auto own_address = __shfl_sync(kFullWarp, own.address, source);
    const float own_weight = __shfl_sync(kFullWarp, own.weight, source);
    const auto staged_address = __shfl_sync(kFullWarp, staged.address, source);
    Terms terms;
    terms.address = takes_own ? own_address : staged_address;
    terms.weight = takes_own ? own_weight : 1.0F;
    terms.grouped = __ballot_sync(kFullWarp, takes_own);
    terms.group_ends = own.count > 0 ? 1U << (lower + own.count - 1) : 0U;
    terms.count = own.count + staged.count;
    return terms;
  }

  /// Flat sums of expert rows: every one where it lies, in top-k order.
  __device__ Terms pulled_terms(int job) const {
    const HandleArrays& handle = work.args.handle;
    Terms terms;
    std::int32_t row = -1;
    if (lane_id() < handle.top_k) {
      const std::int64_t entry = token(job) * handle.top_k + lane_id();
      row = handle.dst_row[entry];
      if (row >= 0) {
        const int rank = work.args.layout.partition().rank_of(handle.expert_ids[entry]);
        terms.address = reinterpret_cast<std::uint64_t>(work.group().section(rank, BufferSection::kCombineRows) +
                                                        row * work.row_bytes());
        if (work.args.weighted) terms.weight = handle.weights[entry];
      }
    }
    return SumWork::compact(row >= 0, terms);
  }
};

template <class Format>
__device__ void sum_rows(const SumArgs& args, SumSlots& slots) {
  const DeviceGroup& group = args.group;
  if (has_failed(group)) return;
  const auto epoch = static_cast<std::uint32_t>(group.local->epoch + 1);
  const DeviceCall kind = args.refuse ? DeviceCall::kRejected : DeviceCall::kCombine;
  const CallContext call{&group, epoch, call_word(epoch, kind, args.handle.handle_id), kPhaseCombine};
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

  bool ok = !args.refuse;
  bool last = false;
  if ((args.phases & kSendPhase) != 0) {
    if (block == 0) announce(call);
    if (!args.pull) {
      if (ok && pushes && group.num_ranks > 1) {
        ok = wait_all_ready(call);
        if (ok) {
          PartialJobs jobs{work, PairSequence(work, pusher)};
          SumPipe<Format, PartialJobs, false>(slots, jobs, work.row_bytes()).run();
        }
      }
      last = is_last_block(&group.local->blocks_sent);
      if (last) signal_done(call);
    }
  } else if (!args.pull) {
    last = is_last_block(&group.local->blocks_sent);
  }
  if ((args.phases & kReceivePhase) == 0) return;
  if (last && threadIdx.x == 0) finish_epoch(call);
  if (ok && finishes) {
    if (!pushes || (args.phases & kSendPhase) == 0) ok = wait_all_ready(call);
    if (ok) {
      TokenJobs jobs{work, finisher};
      if (args.layout.token_major() || args.pull) {
        SumPipe<Format, TokenJobs, false>(slots, jobs, work.row_bytes()).run();
      } else {
        SumPipe<Format, TokenJobs, true>(slots, jobs, work.row_bytes()).run();
      }
    }
  }
  // Pull: the peers may write new expert outputs when everybody has read.
  if (args.pull) {
    last = is_last_block(&group.local->blocks_sent);
    if (last) signal_done(call);
    if (last && threadIdx.x == 0) finish_epoch(call);
  }
  if (last) wait_all_done(call);
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
  switch (dtype) {
    case DType::kBf16:
      return reinterpret_cast<const void*>(&sum_bulk_kernel<Bf16Format>);
    case DType::kFp16:
      return reinterpret_cast<const void*>(&sum_bulk_kernel<Fp16Format>);
    default:
      return reinterpret_cast<const void*>(&sum_bulk_kernel<Fp32Format>);
  }
}
std::int64_t sum_bulk_shared_bytes() noexcept { return static_cast<std::int64_t>(sizeof(SumSlots)) * kBulkWarps; }

cudaError_t launch_sum_bulk(const SumArgs& args, cudaStream_t stream) {
  const auto bytes = static_cast<std::size_t>(sum_bulk_shared_bytes());
  switch (args.dtype) {
    case DType::kBf16:
      sum_bulk_kernel<Bf16Format><<<args.tuning.num_blocks, kBulkThreads, bytes, stream>>>(args);
      break;
    case DType::kFp16:
      sum_bulk_kernel<Fp16Format><<<args.tuning.num_blocks, kBulkThreads, bytes, stream>>>(args);
      break;
    default:
      sum_bulk_kernel<Fp32Format><<<args.tuning.num_blocks, kBulkThreads, bytes, stream>>>(args);
  }
  return cudaGetLastError();
}

}  // namespace epistle::cuda
