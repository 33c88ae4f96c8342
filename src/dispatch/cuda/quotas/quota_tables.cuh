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

/// Experts that have several replicas are numbered; arrays by that number are [replicated].
struct QuotaTables {
  std::int32_t* begin;        // [experts + 1] into entries
  std::int32_t* share;        // [entries]
  std::uint32_t* holders;     // [words, experts] ranks of a replicated expert
  std::uint32_t* givers;      // [words, experts] those that have some of it to pass on
  std::int32_t* chunk_count;  // [experts / 32 + 1] replicated ones
  std::uint32_t* span;        // [replicated] first entry; from bit 16 on, how many
  std::uint32_t* route;       // [replicated] see Route
  std::uint32_t* own;         // [columns] from each rank's first column on, its entries of replicated experts, and from
                              // bit 16 on the number of the expert; before that, kNoEntry where none is in the column
  std::uint16_t* expert_of;   // [entries]
  std::uint16_t* slot_of;     // [entries]
  std::uint16_t* replicated;  // [experts] number of the expert; kNoEntry = it has one replica
  std::uint8_t* rank_of;      // [entries]

  [[nodiscard]] EPISTLE_HOST_DEVICE static constexpr std::int64_t num_bytes(std::int64_t experts,
                                                                            std::int64_t columns) noexcept {
    const std::int64_t words = (experts + 1) + 2 * columns + (2 * kMaxRankWords + 2) * experts + experts / 32 + 1;
    return words * 4 + (columns * 2 + experts) * 2 + columns;
  }

  __device__ static QuotaTables at(std::byte* memory, int experts, int columns) {
    QuotaTables t;
    const auto take = [&memory]<typename Value>(Value*& array, int count) {
      array = reinterpret_cast<Value*>(memory);
      memory += static_cast<std::int64_t>(count) * static_cast<std::int64_t>(sizeof(Value));
    };
    take(t.begin, experts + 1);
    take(t.share, columns);
    take(t.holders, kMaxRankWords * experts);
    take(t.givers, kMaxRankWords * experts);
    take(t.chunk_count, experts / 32 + 1);
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
  std::uint32_t holding[kMaxRankWords];         // ranks that have slots
  std::int32_t num_entries[kMaxRanks];          // of replicated experts
  std::int32_t rank_level[kMaxRankWords * 32];  // of the last search
  std::int32_t num_replicated;
};

/// All that is read of device memory, at once; the block has to meet afterwards. Of entries there may be fewer than
/// columns: what lies behind is read, but does not count.
__device__ inline void read_all(const BatchQuotasArgs& args, const QuotaTables& t, QuotaTotals& totals) {
  std::int64_t sum = 0;
  for (int e = threadIdx.x; e < args.num_experts; e += kQuotaThreads) {
    const std::int64_t tokens = args.expert_tokens[e];
    t.begin[e] = args.slots.replica_begin[e];
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

/// Experts of entries, and how many of every 32 experts are replicated.
__device__ inline void count_replicated(const BatchQuotasArgs& args, const QuotaTables& t) {
  const int end = (args.num_experts + 31) / 32 * 32;
  for (int e = threadIdx.x; e < end; e += kQuotaThreads) {
    const bool inside = e < args.num_experts;
    for (int i = inside ? t.begin[e] : 0; inside && i < t.begin[e + 1]; ++i) {
      t.expert_of[i] = static_cast<std::uint16_t>(e);
    }
    const unsigned several = __ballot_sync(kAllLanes, inside && t.num_replicas(e) > 1);
    if ((e & 31) == 0) t.chunk_count[e / 32] = __popc(several);
  }
}

__device__ inline void number_replicated(const BatchQuotasArgs& args, const QuotaTables& t, QuotaTotals& totals) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int end = (args.num_experts + 31) / 32 * 32;
  for (int e = threadIdx.x; e < end; e += kQuotaThreads) {
    const bool several = e < args.num_experts && t.num_replicas(e) > 1;
    const unsigned bits = __ballot_sync(kAllLanes, several);
    int number = __popc(bits & ((1U << lane) - 1));
    for (int chunk = 0; chunk < e / 32; ++chunk) number += t.chunk_count[chunk];
    if (e + 32 >= end && lane == 31) totals.num_replicated = number + (several ? 1 : 0);
    if (e >= args.num_experts) continue;
    t.replicated[e] = several ? static_cast<std::uint16_t>(number) : kNoEntry;
    if (!several) continue;
    t.span[number] = static_cast<std::uint32_t>(t.begin[e]) | static_cast<std::uint32_t>(t.num_replicas(e)) << 16U;
    for (int w = 0; w < kMaxRankWords; ++w) t.holders[w * args.num_experts + number] = 0;
  }
}

/// Every replica begins with an even share.
__device__ inline void split_evenly(const BatchQuotasArgs& args, const QuotaTables& t, QuotaTotals& totals, int shift) {
  const int num_entries = t.begin[args.num_experts];
  for (int i = threadIdx.x; i < num_entries; i += kQuotaThreads) {
    const int e = t.expert_of[i];
    const std::int32_t units = batch_units(args.expert_tokens[e], shift);
    const std::int32_t rank = t.rank_of[i];
    const std::int32_t share = first_share(units, t.num_replicas(e), i - t.begin[e]);
    t.share[i] = share;
    atomicAdd(&totals.rank_load[rank], share);
    const std::uint32_t bit = 1U << (rank & 31);
    atomicOr(&totals.holding[rank / 32], bit);
    const std::uint16_t number = t.replicated[e];
    if (number == kNoEntry) continue;
    t.own[t.slot_of[i]] = static_cast<std::uint32_t>(i) | std::uint32_t{number} << 16U;
    atomicOr(&t.holders[rank / 32 * args.num_experts + number], bit);
  }
}

/// Brings each rank's entries of replicated experts together, in the order of its slots: one warp for each rank.
__device__ inline void list_entries(const BatchQuotasArgs& args, const QuotaTables& t, QuotaTotals& totals) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  for (int rank = static_cast<int>(threadIdx.x) / 32; rank < args.num_ranks; rank += kQuotaWarps) {
    std::uint32_t* own = t.own + rank * args.slots_per_rank;
    int count = 0;
    for (int first = 0; first < args.slots_per_rank; first += 32) {
      const bool inside = first + lane < args.slots_per_rank;
      const std::uint32_t entry = inside ? own[first + lane] : kNoEntry;
      const unsigned bits = __ballot_sync(kAllLanes, entry != kNoEntry);
      __syncwarp();  // all have read what is written to now
      if (entry != kNoEntry) own[count + __popc(bits & ((1U << lane) - 1))] = entry;
      __syncwarp();
      count += __popc(bits);
    }
    if (lane == 0) totals.num_entries[rank] = count;
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
