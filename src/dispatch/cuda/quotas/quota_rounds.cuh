// Rounds before the phases: every expert with several replicas moves some from its fullest rank to its emptiest, all at
// once. A thread has an expert.
#pragma once

#include "dispatch/cuda/quotas/quota_tables.cuh"

namespace epistle::cuda {

/// What an expert moves in a round: entries, and how much. In one word, that goes by where the tokens were.
struct QuotaMove {
  std::uint64_t word;

  __device__ static QuotaMove of(std::uint32_t from, std::uint32_t to, std::int32_t amount) {
    return {static_cast<std::uint64_t>(from | to << 16U) << 32U | static_cast<std::uint32_t>(amount)};
  }
  [[nodiscard]] __device__ std::uint32_t from() const { return static_cast<std::uint32_t>(word >> 32U) & 0xffffU; }
  [[nodiscard]] __device__ std::uint32_t to() const { return static_cast<std::uint32_t>(word >> 48U); }
  [[nodiscard]] __device__ std::int32_t amount() const { return static_cast<std::int32_t>(word & 0xffffffffU); }
};

__device__ inline QuotaMove find_move(const QuotaTables& t, const QuotaTotals& totals, int number) {
  constexpr std::int32_t kNone = -1;
  const std::uint32_t span = t.span[number];
  const std::uint32_t begin = span & 0xffffU;
  const std::uint32_t end = begin + (span >> 16U);
  std::uint32_t from = begin;
  std::uint32_t to = begin;
  std::int32_t most = kNone;
  std::int32_t least = 0x7fffffff;
  std::int32_t held = 0;
#pragma unroll 2
  for (std::uint32_t entry = begin; entry < end; ++entry) {
    const std::int32_t load = totals.rank_load[t.rank_of[entry]];
    const std::int32_t share = t.share[entry];
    const bool is_fuller = share > 0 && load > most;
    most = is_fuller ? load : most;
    from = is_fuller ? entry : from;
    held = is_fuller ? share : held;
    const bool is_emptier = load < least;
    least = is_emptier ? load : least;
    to = is_emptier ? entry : to;
  }
  const std::uint32_t pace = totals.pace[t.rank_of[from]];
  const std::int32_t wanted = amount_of_round(max(most - least, 0), pace, totals.pace[t.rank_of[to]]);
  return QuotaMove::of(from, to, min(wanted, held));
}

__device__ inline void make_move(const QuotaTables& t, QuotaTotals& totals, QuotaMove move) {
  if (move.amount() == 0) return;
  t.share[move.from()] -= move.amount();
  t.share[move.to()] += move.amount();
  atomicSub(&totals.rank_load[t.rank_of[move.from()]], move.amount());
  atomicAdd(&totals.rank_load[t.rank_of[move.to()]], move.amount());
}

/// Until no rank is above the target, as seen by all threads, or there were enough.
__device__ inline void even_out(const QuotaTables& t, QuotaTotals& totals, std::int32_t target, int max_rounds) {
  if (max_rounds == 0) return;
  if (threadIdx.x < kMaxRankWords * 32) totals.pace[threadIdx.x] = pace_of_rank(totals.num_shared[threadIdx.x]);
  const int num_replicated = totals.num_replicated;
  auto* const moves = reinterpret_cast<std::uint64_t*>(t.tokens);  // tokens are shared out by now
  __syncthreads();
#pragma unroll 1
  for (int round = 0; round < max_rounds; ++round) {
    const bool is_above = threadIdx.x < kMaxRankWords * 32 && totals.rank_load[threadIdx.x] > target;
#pragma unroll 1
    for (int number = threadIdx.x; number < num_replicated; number += kQuotaThreads) {
      moves[number] = find_move(t, totals, number).word;
    }
    if (__syncthreads_or(is_above) == 0) return;  // and all have looked before anything moves
#pragma unroll 1
    for (int number = threadIdx.x; number < num_replicated; number += kQuotaThreads) {
      make_move(t, totals, QuotaMove{moves[number]});
    }
    __syncthreads();
  }
}

/// The ranks of every replicated expert, and those that have some of it to pass on.
template <int kWords>
__device__ inline void note_holders(const BatchQuotasArgs& args, const QuotaTables& t, const QuotaTotals& totals) {
#pragma unroll 1
  for (int number = threadIdx.x; number < totals.num_replicated; number += kQuotaThreads) {
    const std::uint32_t begin = t.span[number] & 0xffffU;
    const std::uint32_t end = begin + (t.span[number] >> 16U);
    std::uint32_t entry = begin;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      std::uint32_t holders = 0;
      std::uint32_t givers = 0;
#pragma unroll 1
      for (; entry < end && t.rank_of[entry] / 32 == w; ++entry) {
        const std::uint32_t bit = 1U << (t.rank_of[entry] & 31U);
        holders |= bit;
        givers |= t.share[entry] > 0 ? bit : 0;
      }
      t.holders[w * args.num_experts + number] = holders;
      t.givers[w * args.num_experts + number] = givers;
    }
  }
}

}  // namespace epistle::cuda
