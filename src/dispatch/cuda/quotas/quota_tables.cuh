// The tables of a batch in shared memory, and how all threads of the block fill them.
#pragma once

#include <cstdint>

#include "dispatch/cuda/quotas/batch_quotas.hpp"
#include "layout/batch_shares.hpp"

namespace epistle::cuda {

inline constexpr int kQuotaThreads = 512;
inline constexpr int kQuotaWarps = kQuotaThreads / 32;
/// Words of the largest set of ranks.
inline constexpr int kMaxRankWords = (kMaxRanks + 31) / 32;
inline constexpr std::uint16_t kNoEntry = 0xffff;
inline constexpr unsigned kAllLanes = 0xffffffffU;

/// Experts that have several replicas are numbered, in any order; arrays by that number are [replicated].
struct QuotaTables {
  std::int64_t* tokens;       // [experts]
  std::int32_t* begin;        // [experts + 1] into entries
  std::int32_t* share;        // [entries]
  std::uint32_t* holders;     // [words, experts] ranks of a replicated expert
  std::uint32_t* givers;      // [words, experts] those that have some of it to pass on
  std::uint32_t* span;        // [replicated] first entry; from bit 16 on, how many
  std::uint32_t* route;       // [replicated] see Route
  std::uint32_t* own;         // [columns] entry of a replicated expert, and from bit 16 on the number of the expert;
                              // kNoEntry where none is in the column
  std::uint16_t* expert_of;   // [entries]
  std::uint16_t* slot_of;     // [entries]
  std::uint16_t* replicated;  // [experts] number of the expert; kNoEntry = it has one replica
  std::uint8_t* rank_of;      // [entries]

  [[nodiscard]] EPISTLE_HOST_DEVICE static constexpr std::int64_t num_bytes(std::int64_t experts,
                                                                            std::int64_t columns) noexcept {
    const std::int64_t words = (experts + 1) + 2 * columns + (2 * kMaxRankWords + 2) * experts;
    return experts * 8 + words * 4 + (columns * 2 + experts) * 2 + columns;
  }

  __device__ static QuotaTables at(std::byte* memory, int experts, int columns) {
    QuotaTables t;
    const auto take = [&memory]<typename Value>(Value*& array, int count) {
      array = reinterpret_cast<Value*>(memory);
      memory += static_cast<std::int64_t>(count) * static_cast<std::int64_t>(sizeof(Value));
    };
    take(t.tokens, experts);
    take(t.begin, experts + 1);
    take(t.share, columns);
    take(t.holders, kMaxRankWords * experts);
    take(t.givers, kMaxRankWords * experts);
    take(t.span, experts);
    take(t.route, experts);
    take(t.own, columns);
    take(t.expert_of, columns);
    take(t.slot_of, columns);
    take(t.replicated, experts);
    take(t.rank_of, columns);
    return t;
  }

  [[nodiscard]] __device__ int num_replicas(int expert) const { return begin[expert + 1] - begin[expert]; }
};

/// Where what ranks pass on of an expert goes in a phase.
struct Route {
  std::uint32_t word;

  __device__ static Route to(int entry, int rank, int level) {
    return {static_cast<std::uint32_t>(entry) | static_cast<std::uint32_t>(rank) << 16U |
            static_cast<std::uint32_t>(level) << 24U};
  }
  [[nodiscard]] __device__ int entry() const { return static_cast<int>(word & 0xffffU); }
  [[nodiscard]] __device__ int rank() const { return static_cast<int>(word >> 16U & 0xffU); }
  /// 0 = the expert was not reached.
  [[nodiscard]] __device__ int level() const { return static_cast<int>(word >> 24U); }
};

/// What the block knows besides.
struct QuotaTotals {
  std::int64_t tokens_of_warp[kQuotaWarps];
  std::int32_t rank_load[kMaxRankWords * 32];
  std::uint32_t holding[kMaxRankWords];  // ranks that have slots
  std::int32_t num_replicated;
  // Of the last search.
  std::int32_t rank_level[kMaxRankWords * 32];              // -1 = not reached
  std::uint32_t level_ranks[kMaxRanks + 1][kMaxRankWords];  // ranks of a level
  std::int32_t outermost;                                   // the last level; 0 = no rank is above the target
  std::int32_t target;
};

/// All that is read of device memory, at once; the block has to meet afterwards. Of entries there may be fewer than
/// columns: what lies behind is read, but does not count.
__device__ inline void read_all(const BatchQuotasArgs& args, const QuotaTables& t, QuotaTotals& totals) {
  std::int64_t sum = 0;
  for (int e = threadIdx.x; e < args.num_experts; e += kQuotaThreads) {
    const std::int64_t tokens = args.expert_tokens[e];
    t.begin[e] = args.slots.replica_begin[e];
    t.tokens[e] = tokens;
    sum += max(tokens, std::int64_t{0});
  }
  if (threadIdx.x == 0) t.begin[args.num_experts] = args.slots.replica_begin[args.num_experts];
  for (int c = threadIdx.x; c < args.num_columns(); c += kQuotaThreads) {
    const ReplicaEntry& entry = args.slots.entries[c];
    t.rank_of[c] = static_cast<std::uint8_t>(entry.rank);
    t.slot_of[c] = static_cast<std::uint16_t>(entry.slot);
    t.own[c] = kNoEntry;
    if (args.slot_tokens != nullptr) args.slot_tokens[c] = 0;
  }
  // Not by atomic additions of 64 bits, which are loops in shared memory.
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  if ((threadIdx.x & 31) == 0) totals.tokens_of_warp[threadIdx.x / 32] = sum;
}

__device__ inline int shift_of(const QuotaTotals& totals) {
  std::int64_t tokens = 0;
#pragma unroll
  for (int warp = 0; warp < kQuotaWarps; ++warp) tokens += totals.tokens_of_warp[warp];
  return batch_shift(tokens);
}

/// The experts of entries, and numbers for those that are replicated. Which gets which number decides nothing.
__device__ inline void number_experts(const BatchQuotasArgs& args, const QuotaTables& t, QuotaTotals& totals) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int end = (args.num_experts + 31) / 32 * 32;
  for (int e = threadIdx.x; e < end; e += kQuotaThreads) {
    const bool inside = e < args.num_experts;
    const int begin = inside ? t.begin[e] : 0;
    const int count = inside ? t.begin[e + 1] - begin : 0;
    const unsigned several = __ballot_sync(kAllLanes, count > 1);
    int first = 0;
    if (lane == 0 && several != 0) first = atomicAdd(&totals.num_replicated, __popc(several));
    const int number = __shfl_sync(kAllLanes, first, 0) + __popc(several & ((1U << lane) - 1));
    for (int i = 0; i < count; ++i) t.expert_of[begin + i] = static_cast<std::uint16_t>(e);
    if (inside) t.replicated[e] = count > 1 ? static_cast<std::uint16_t>(number) : kNoEntry;
    if (count <= 1) continue;
    t.span[number] = static_cast<std::uint32_t>(begin) | static_cast<std::uint32_t>(count) << 16U;
    for (int w = 0; w < kMaxRankWords; ++w) {
      t.holders[w * args.num_experts + number] = 0;
      t.givers[w * args.num_experts + number] = 0;
    }
  }
}

/// Every replica begins with an even share.
__device__ inline void split_evenly(const BatchQuotasArgs& args, const QuotaTables& t, QuotaTotals& totals, int shift) {
  const int num_entries = t.begin[args.num_experts];
  for (int i = threadIdx.x; i < num_entries; i += kQuotaThreads) {
    const int e = t.expert_of[i];
    const std::int32_t units = batch_units(t.tokens[e], shift);
    const std::int32_t rank = t.rank_of[i];
    const std::int32_t share = first_share(units, t.num_replicas(e), i - t.begin[e]);
    t.share[i] = share;
    atomicAdd(&totals.rank_load[rank], share);
    const std::uint32_t bit = 1U << (rank & 31);
    atomicOr(&totals.holding[rank / 32], bit);
    const std::uint16_t number = t.replicated[e];
    if (number == kNoEntry) continue;
    t.own[t.slot_of[i]] = static_cast<std::uint32_t>(i) | std::uint32_t{number} << 16U;
    const int word = rank / 32 * args.num_experts + number;
    atomicOr(&t.holders[word], bit);
    if (share > 0) atomicOr(&t.givers[word], bit);
  }
}

/// What has come of it goes to the tables that replicas are chosen by, and to the caller.
__device__ inline void write_quotas(const BatchQuotasArgs& args, const QuotaTables& t, const QuotaTotals& totals,
                                    int shift) {
  const int num_entries = t.begin[args.num_experts];
  for (int i = threadIdx.x; i < num_entries; i += kQuotaThreads) {
    const int e = t.expert_of[i];
    if (args.slot_tokens != nullptr) {
      args.slot_tokens[t.slot_of[i]] = static_cast<std::int64_t>(t.share[i]) << shift;
    }
    if (t.replicated[e] == kNoEntry) continue;
    std::int32_t sum = 0;
    std::int32_t units = 0;
    for (int j = t.begin[e]; j < t.begin[e + 1]; ++j) {
      units += t.share[j];
      if (j <= i) sum += t.share[j];
    }
    args.slots.entries[i].part_end = batch_part_end(sum, units, t.num_replicas(e), i - t.begin[e]);
  }
  if (args.rank_tokens == nullptr) return;
  for (int r = threadIdx.x; r < args.num_ranks; r += kQuotaThreads) {
    args.rank_tokens[r] = static_cast<std::int64_t>(totals.rank_load[r]) << shift;
  }
}

}  // namespace epistle::cuda
