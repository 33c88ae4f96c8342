// Sums of rows by one warp, by the contract in epistle/dispatcher.hpp. Compiled with -fmad=false.
#pragma once

#include <cstddef>
#include <cstdint>

#include "epistle/types.hpp"

#include "dispatch/cuda/device/formats.cuh"
#include "dispatch/cuda/device/rows.cuh"

namespace epistle::cuda {

/// A warp among those of a grid.
struct WarpIndex {
  int idx;
  int count;
};
__device__ inline WarpIndex warp_index() {
  const int warps = static_cast<int>(blockDim.x) / kWarpSize;
  return {static_cast<int>(blockIdx.x) * warps + static_cast<int>(threadIdx.x) / kWarpSize,
          static_cast<int>(gridDim.x) * warps};
}

__device__ inline bool is_aligned(const std::byte* row) { return (reinterpret_cast<std::uint64_t>(row) & 15U) == 0; }

__device__ inline uint4 load_any_vector(const std::byte* from, bool aligned) {
  if (aligned) return load_vector(from);
  uint4 v;
  auto* bytes = reinterpret_cast<std::byte*>(&v);
  for (int i = 0; i < kVectorBytes; ++i) bytes[i] = from[i];
  return v;
}

__device__ inline void store_any_vector(std::byte* to, const uint4& v, bool aligned) {
  if (aligned) return store_vector(to, v);
  const auto* bytes = reinterpret_cast<const std::byte*>(&v);
  for (int i = 0; i < kVectorBytes; ++i) to[i] = bytes[i];
}

/// A row that is added, and what it is multiplied by.
struct Term {
  const std::byte* row = nullptr;  ///< null = none
  float weight = 0.0F;
  bool ends_group = false;  ///< grouped sums: the sum since the last group is rounded before it is added
};

/// 16-byte vectors that a lane sums at once.
inline constexpr int kVectorsPerLane = 4;

/// out = round(sum of the terms 0 to num_terms - 1, in this order). `term_at(i)` is called by one lane for each i.
/// kGrouped: of the rounded sums of groups.
template <class Format, bool kGrouped = false, typename TermAt>
__device__ inline void sum_row(int num_terms, const TermAt& term_at, bool weighted, std::byte* out,
                               std::int64_t row_bytes) {
  const int num_vectors = static_cast<int>(row_bytes / kVectorBytes);
  const bool out_aligned = is_aligned(out);
  for (int base = 0; base < num_vectors; base += kVectorsPerLane * kWarpSize) {
    const int begin = base + lane_id();
    float sums[kVectorsPerLane][Format::kElements] = {};
    float groups[kGrouped ? kVectorsPerLane : 1][Format::kElements] = {};
    for (int first = 0; first < num_terms; first += kWarpSize) {
      const int i = first + lane_id();
      Term term;
      if (i < num_terms) term = term_at(i);
      for (unsigned left = __ballot_sync(kFullWarp, term.row != nullptr); left != 0; left &= left - 1) {
        const int lane = __ffs(static_cast<int>(left)) - 1;
        const auto address = __shfl_sync(kFullWarp, reinterpret_cast<unsigned long long>(term.row), lane);
        const float weight = __shfl_sync(kFullWarp, term.weight, lane);
        const bool ends_group = kGrouped && __shfl_sync(kFullWarp, term.ends_group ? 1 : 0, lane) != 0;
        const auto* row = reinterpret_cast<const std::byte*>(address);
        const bool aligned = is_aligned(row);
        uint4 vectors[kVectorsPerLane];
#pragma unroll
        for (int v = 0; v < kVectorsPerLane; ++v) {
          const int at = begin + v * kWarpSize;
          vectors[v] = make_uint4(0, 0, 0, 0);
          if (at < num_vectors) {
            vectors[v] = load_any_vector(row + static_cast<std::int64_t>(at) * kVectorBytes, aligned);
          }
        }
#pragma unroll
        for (int v = 0; v < kVectorsPerLane; ++v) {
          float elements[Format::kElements];
          Format::unpack(vectors[v], elements);
#pragma unroll
          for (int e = 0; e < Format::kElements; ++e) {
            float& sum = kGrouped ? groups[kGrouped ? v : 0][e] : sums[v][e];
            sum = __fadd_rn(sum, weighted ? __fmul_rn(weight, elements[e]) : elements[e]);
          }
          if (!ends_group) continue;
          auto& group = groups[kGrouped ? v : 0];
          Format::unpack(Format::pack(group), elements);
#pragma unroll
          for (int e = 0; e < Format::kElements; ++e) {
            sums[v][e] = __fadd_rn(sums[v][e], elements[e]);
            group[e] = 0.0F;
          }
        }
      }
    }
#pragma unroll
    for (int v = 0; v < kVectorsPerLane; ++v) {
      const int at = begin + v * kWarpSize;
      if (at < num_vectors) {
        store_any_vector(out + static_cast<std::int64_t>(at) * kVectorBytes, Format::pack(sums[v]), out_aligned);
      }
    }
  }
}

}  // namespace epistle::cuda
