// What every block of a dispatch by lines knows of its rank's routing: one bit for every token and destination, so that
// the place of a token among those of a rank or an expert is a number of bits.
#pragma once

#include <cstdint>

#include "dispatch/cuda/device/rows.cuh"
#include "dispatch/cuda/engine/launch.hpp"
#include "dispatch/cuda/low_latency/line_plan.hpp"

namespace epistle::cuda {

/// Asks for all of a kernel's arguments at once, each warp for some of them: they lie in constant memory, where the
/// first look at every 64 bytes takes as long as one at global memory, and one warp would wait for one after the other.
/// What comes back means nothing, but must be used.
template <typename Args>
__device__ inline std::uint32_t touch_args(const Args& args) {
  constexpr int kLineWords = 16;
  constexpr auto kLines = static_cast<int>((sizeof(Args) + 63) / 64);
  const auto* words = reinterpret_cast<const std::uint32_t*>(&args);
  std::uint32_t touched = 0;
#pragma unroll
  for (int first = 0; first < kLines; first += kLineWarps) {
    const int line = min(first + static_cast<int>(threadIdx.x) / kWarpSize, kLines - 1);
    std::uint32_t word;
    // As it stands, so that it is not put off until it is used.
    asm volatile("{ .reg .u64 p; cvta.to.param.u64 p, %1; ld.param.u32 %0, [p]; }"
                 : "=r"(word)
                 : "l"(words + line * kLineWords));
    touched ^= word;
  }
  return touched;
}

/// Some warps of a block, which meet by themselves.
struct Team {
  int thread;   ///< this thread's place among them
  int count;    ///< threads
  int barrier;  ///< of the block's; 0 for the whole block

  __device__ void meet() const { asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(count) : "memory"); }
};
__device__ inline Team whole_block() { return {static_cast<int>(threadIdx.x), kLineThreads, 0}; }

/// In shared memory. Columns as in the counts of a source.
struct RoutingBits {
  std::uint32_t* bits;    ///< [columns][stride] bit t of a column: token t goes there
  std::int32_t* entries;  ///< [num_tokens, top_k] expert, -1 = none
  std::uint8_t* ranks;    ///< [num_tokens, top_k] rank of the expert
  int stride;             ///< words of a column; odd, so that neighbouring columns lie in different banks
  int num_columns;

  __device__ void clear(const Team& team) {
    for (int i = team.thread; i < num_columns * stride; i += team.count) bits[i] = 0;
  }
  [[nodiscard]] __device__ bool has(int column, int token) const {
    return (bits[column * stride + token / 32] >> (token & 31) & 1U) != 0;
  }
  /// Tokens of a column.
  [[nodiscard]] __device__ int count(int column) const {
    int count = 0;
#pragma unroll 1
    for (int w = 0; w < stride; ++w) count += __popc(bits[column * stride + w]);
    return count;
  }
  /// Of these, the tokens before `token`.
  [[nodiscard]] __device__ int before(int column, int token) const {
    const std::uint32_t* words = bits + column * stride;
    int count = 0;
#pragma unroll 1
    for (int w = 0; w < token / 32; ++w) count += __popc(words[w]);
    return count + __popc(words[token / 32] & ((1U << (token & 31)) - 1));
  }
};

/// Which of a token's positions stand for one of its ranks, and where that rank stands among them. One warp; a lane for
/// every top-k position.
struct TokenRanks {
  std::int32_t expert = kNoExpert;
  int rank = -1;
  unsigned leaders = 0;  ///< lanes that stand for a rank
  int slot = 0;          ///< of a leader's rank, in the order in which combine adds

  __device__ TokenRanks(const RoutingBits& routing, std::int64_t token, int top_k, SumOrder order) {
    const int lane = lane_id();
    if (lane < top_k) {
      const std::int64_t entry = token * top_k + lane;
      expert = routing.entries[entry];
      if (expert >= 0) rank = routing.ranks[entry];
    }
    const unsigned same = __match_any_sync(kFullWarp, rank);
    const unsigned lower = (1U << lane) - 1;
    const bool is_first = rank >= 0 && (same & lower) == 0;
    const bool is_last = rank >= 0 && (same & ~lower & ~(1U << lane)) == 0;
    leaders = __ballot_sync(kFullWarp, order == SumOrder::kDeepEpV2 ? is_last : is_first);
    slot = __popc(leaders & lower);
    if (order != SumOrder::kHierarchical) return;
    slot = 0;
#pragma unroll 1
    for (unsigned left = leaders; left != 0; left &= left - 1) {
      const int other = __shfl_sync(kFullWarp, rank, __ffs(static_cast<int>(left)) - 1);
      if (other < rank) ++slot;
    }
  }
  [[nodiscard]] __device__ bool is_leader() const { return (leaders >> lane_id() & 1U) != 0; }
  /// Sum of the weights of a leader's rank, in top-k order.
  [[nodiscard]] __device__ float rank_weight(float weight, int top_k) const {
    float sum = 0.0F;
#pragma unroll 1
    for (int position = 0; position < top_k; ++position) {
      const int other = __shfl_sync(kFullWarp, rank, position);
      const float term = __shfl_sync(kFullWarp, weight, position);
      if (other == rank) sum += term;
    }
    return sum;
  }
};

}  // namespace epistle::cuda
