// Sets of ranks as words of bits.
#pragma once

#include <cstdint>

#include "dispatch/cuda/quotas/quota_tables.cuh"

namespace epistle::cuda {

/// The same in all lanes, or each lane's own.
template <int kWords>
struct RankSet {
  std::uint32_t word[kWords] = {};

  [[nodiscard]] __device__ bool any() const {
    std::uint32_t all = 0;
#pragma unroll
    for (int w = 0; w < kWords; ++w) all |= word[w];
    return all != 0;
  }
  __device__ void add(const RankSet& other) {
#pragma unroll
    for (int w = 0; w < kWords; ++w) word[w] |= other.word[w];
  }
  [[nodiscard]] __device__ RankSet both(const RankSet& other) const {
    RankSet result;
#pragma unroll
    for (int w = 0; w < kWords; ++w) result.word[w] = word[w] & other.word[w];
    return result;
  }
  [[nodiscard]] __device__ RankSet without(const RankSet& other) const {
    RankSet result;
#pragma unroll
    for (int w = 0; w < kWords; ++w) result.word[w] = word[w] & ~other.word[w];
    return result;
  }
  /// Of all lanes together.
  [[nodiscard]] __device__ RankSet of_warp() const {
    RankSet result;
#pragma unroll
    for (int w = 0; w < kWords; ++w) result.word[w] = __reduce_or_sync(kAllLanes, word[w]);
    return result;
  }
};

}  // namespace epistle::cuda
