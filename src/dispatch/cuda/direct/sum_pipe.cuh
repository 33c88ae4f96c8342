// Sums of rows that come through shared memory (sm_90 and later): a warp keeps several parts of rows on their way.
//
// A warp has a list of jobs: sums of some rows (terms) into one row. Parts of terms are loaded in the order in which
// they are added, ahead of the adding by as many as the ring holds, across parts and jobs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dispatch/cuda/device/bulk.cuh"
#include "dispatch/cuda/device/formats.cuh"
#include "dispatch/cuda/device/rows.cuh"

namespace epistle::cuda {

// 16-byte vectors of a part that a lane adds, and parts that a warp has room for. Short parts and many warps beat long
// parts and few warps; a longer ring makes small rows slower (docs/tuning/cuda.md).
inline constexpr int kTermVectors = 4;
inline constexpr int kTermBytes = kTermVectors * kWarpSize * kVectorBytes;
inline constexpr int kRingTerms = 3;

/// Shared memory of a warp.
struct alignas(128) SumRing {
  std::byte terms[kRingTerms * kTermBytes];
  std::uint64_t term_loaded[kRingTerms];
};

#if EPISTLE_BULK_COPIES

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
template <class Format>
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

/// Sums rows for a list of jobs. `Jobs` has: int count(); Terms terms(int job), by the whole warp, which waits until
/// they are there; Terms terms_again(int job), of an earlier job; std::byte* target(int job); void finish(int job),
/// when a row is stored; bool failed().
template <class Format, class Jobs, bool kGroups>
class SumPipe {
 public:
  __device__ SumPipe(SumRing& ring, Jobs& jobs, std::int64_t row_bytes)
      : ring_(ring), jobs_(jobs), row_bytes_(static_cast<int>(row_bytes)) {
    if (lane_id() == 0) {
      for (int term = 0; term < kRingTerms; ++term) init_barrier(&ring.term_loaded[term]);
      fence_async();
    }
    __syncwarp();
  }

  /// Finds the first job's terms.
  __device__ void prepare() { load_next_job(); }

  /// Everything is stored, and the ring is free, when it returns.
  __device__ void run() {
    while (issued_ - consumed_ < kRingTerms && issue()) {
    }
    for (int job = 0; job < jobs_.count(); ++job) {
      const Terms terms = job == loaded_job_ ? ahead_ : jobs_.terms_again(job);
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
    PartSum<Format> sum;
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
  __device__ void add_groups(const Terms& terms, int num_vectors, PartSum<Format>& sum) {
    PartSum<Format> group;
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

  /// The next part of a term, into registers; its place is filled again at once.
  template <bool kFull>
  __device__ void take(uint4 (&row)[kTermVectors], int num_vectors) {
    const std::uint32_t idx = consumed_;
    while (!is_loaded(&ring_.term_loaded[idx % kRingTerms], (idx / kRingTerms) & 1U)) {
    }
    const std::byte* part = place_of(idx) + lane_id() * kVectorBytes;
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
      load_part(place_of(issued_), reinterpret_cast<const std::byte*>(address) + next_at_, size,
                &ring_.term_loaded[issued_ % kRingTerms]);
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

  /// After a failure: what was loaded must have arrived before the ring is used again.
  __device__ void drain() {
    for (; consumed_ != issued_; ++consumed_) {
      while (!is_loaded(&ring_.term_loaded[consumed_ % kRingTerms], (consumed_ / kRingTerms) & 1U)) {
      }
    }
    __syncwarp();
  }

  __device__ std::byte* place_of(std::uint32_t idx) const {
    return ring_.terms + static_cast<std::size_t>(idx % kRingTerms) * kTermBytes;
  }

  SumRing& ring_;
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

#endif  // EPISTLE_BULK_COPIES

}  // namespace epistle::cuda
