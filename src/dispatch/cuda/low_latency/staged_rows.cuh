// Rows that a warp adds, on their way to its part of shared memory while it does something else: a chunk of each row of
// a unit. Of more rows than there is room for (a token with so many experts on one rank) the others are read when their
// turn comes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "dispatch/cuda/device/bulk.cuh"
#include "dispatch/cuda/low_latency/lines.cuh"

namespace epistle::cuda {

inline constexpr int kStagedVectorBytes = kWarpSize * kVectorBytes;
/// Of a warp.
inline constexpr int kStageBytes = 12 * Chunk::kVectors * kStagedVectorBytes;

/// A row that is added: what a lane has found out for the others.
struct alignas(8) RowTerm {
  std::int32_t row;
  float weight;
};

/// The rows of a unit, one behind the other, in shared memory.
class TermList {
 public:
  __device__ explicit TermList(RowTerm (&terms)[kWarpSize])
      : address_(kept(static_cast<int>(__cvta_generic_to_shared(terms)))) {}

  __device__ void store(int place, const RowTerm& term) const {
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(at(place)), "r"(term.row), "f"(term.weight) : "memory");
  }
  [[nodiscard]] __device__ RowTerm operator[](int place) const {
    RowTerm term;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(term.row), "=f"(term.weight) : "r"(at(place)) : "memory");
    return term;
  }

 private:
  [[nodiscard]] __device__ int at(int place) const { return address_ + place * static_cast<int>(sizeof(RowTerm)); }

  int address_;
};

/// The chunk of every row of a matrix.
struct ChunkOfRows {
  const std::byte* first;
  std::uint32_t row_bytes;
  int num_bytes;  ///< of the chunk

  [[nodiscard]] __device__ const std::byte* of(std::int32_t row) const {
    return first + std::uint64_t{static_cast<std::uint32_t>(row)} * row_bytes;
  }
};

__device__ inline uint4 load_staged(int from) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(from)
               : "memory");
  return v;
}

/// Copied by all lanes, one row after the other: [rows][vectors of a chunk][lanes] of 16 bytes, where a lane reads what
/// it has copied itself.
template <class ChunkType>
class LaneStage {
 public:
  static constexpr int kRowBytes = ChunkType::kVectors * kStagedVectorBytes;
  static constexpr int kRows = kStageBytes / kRowBytes;

  __device__ LaneStage(std::byte* memory, std::uint64_t& /*arrived*/)
      : rows_(kept(static_cast<int>(__cvta_generic_to_shared(memory)) + lane_id() * kVectorBytes)) {}

  /// Sends for `count` rows, those of `terms`.
  __device__ void ask(const ChunkOfRows& chunks, const typename ChunkType::Parts& parts, const TermList& terms,
                      int count, std::int32_t /*row_of_lane*/, int /*place*/) {
    const std::byte* first = chunks.first + parts.first;
    int to = rows_;
#pragma unroll 1
    for (int i = 0; i < min(count, kRows); ++i) {
      const std::byte* from = first + std::uint64_t{static_cast<std::uint32_t>(terms[i].row)} * chunks.row_bytes;
#pragma unroll
      for (int v = 0; v < ChunkType::kVectors; ++v) {
        const bool is_in = parts.is_in(v, chunks.num_bytes);
        copy_ahead(to + v * kStagedVectorBytes, from + v * ChunkType::Parts::kStep, is_in && !parts.has_flag,
                   is_in && parts.has_flag);
      }
      to += kRowBytes;
    }
  }
  __device__ void await(int /*count*/) { asm volatile("cp.async.wait_all;" ::: "memory"); }
  /// What a lane holds behind the chunk's bytes means nothing.
  __device__ void read(int i, const typename ChunkType::Parts& /*parts*/, ChunkType& row) const {
#pragma unroll
    for (int v = 0; v < ChunkType::kVectors; ++v)
      row.v[v] = load_staged(rows_ + i * kRowBytes + v * kStagedVectorBytes);
  }

 private:
  /// 16 bytes, or 8, or nothing; without branches, each of which takes longer.
  __device__ static void copy_ahead(int to, const std::byte* from, bool whole, bool half) {
    asm volatile(
        "{\n.reg .pred p, q;\n"
        "setp.ne.u32 p, %2, 0;\n"
        "setp.ne.u32 q, %3, 0;\n"
        "@p cp.async.cg.shared.global [%0], [%1], 16;\n"
        "@q cp.async.ca.shared.global [%0], [%1], 8;\n}\n" ::"r"(to),
        "l"(from), "r"(static_cast<std::uint32_t>(whole)), "r"(static_cast<std::uint32_t>(half))
        : "memory");
  }

  int rows_;  ///< address in shared memory of this lane's part
};

#if EPISTLE_BULK_COPIES

/// Bulk copies, all at once: a lane for each row, a few instructions for all of them. Chunks lie one behind the other.
template <class ChunkType>
class BulkStage {
 public:
  static constexpr int kRows = kStageBytes / ChunkType::kBytes;

  __device__ BulkStage(std::byte* memory, std::uint64_t& arrived)
      : rows_(kept(static_cast<int>(__cvta_generic_to_shared(memory)))), arrived_(&arrived) {
    if (lane_id() == 0) {
      init_barrier(arrived_);
      fence_async();
    }
    __syncwarp();
  }

  /// Sends for `count` rows: lanes that have one (`row_of_lane` >= 0) know its place. All have read what was there.
  __device__ void ask(const ChunkOfRows& chunks, const typename ChunkType::Parts& /*parts*/, const TermList& /*terms*/,
                      int count, std::int32_t row_of_lane, int place) {
    const auto num_bytes = static_cast<std::uint32_t>(chunks.num_bytes);
    if (count > 0 && lane_id() == 0) expect_parts(static_cast<std::uint32_t>(min(count, kRows)) * num_bytes, arrived_);
    __syncwarp();
    if (row_of_lane < 0 || place >= kRows) return;
    load_expected_part(static_cast<std::uint32_t>(rows_ + place * ChunkType::kBytes), chunks.of(row_of_lane), num_bytes,
                       arrived_);
  }
  __device__ void await(int count) {
    if (count == 0) return;
    while (!is_loaded(arrived_, parity_)) {
    }
    parity_ ^= 1U;
  }
  /// What a lane holds behind the chunk's bytes means nothing, nor does the other half of a half unit.
  __device__ void read(int i, const typename ChunkType::Parts& parts, ChunkType& row) const {
    const int from = rows_ + i * ChunkType::kBytes + parts.first;
#pragma unroll
    for (int v = 0; v < ChunkType::kVectors; ++v) {
      if (parts.has_flag) {
        row.v[v] = load_half(from + v * ChunkType::Parts::kStep);
      } else {
        row.v[v] = load_staged(from + v * ChunkType::Parts::kStep);
      }
    }
  }

 private:
  __device__ static uint4 load_half(int from) {
    uint4 v = make_uint4(0, 0, 0, 0);
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(from) : "memory");
    return v;
  }

  int rows_;  ///< address in shared memory of the warp's
  std::uint64_t* arrived_;
  std::uint32_t parity_ = 0;
};

#endif  // EPISTLE_BULK_COPIES

/// Of units of `kOneRow` at most a copy by all lanes is as fast.
#if EPISTLE_BULK_COPIES
template <class ChunkType, bool kOneRow>
using RowStage = std::conditional_t<kOneRow, LaneStage<ChunkType>, BulkStage<ChunkType>>;
#else
template <class ChunkType, bool kOneRow>
using RowStage = LaneStage<ChunkType>;
#endif

}  // namespace epistle::cuda
