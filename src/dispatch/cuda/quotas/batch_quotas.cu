// Quotas of a batch (see layout/batch_shares.hpp for how). All threads fill the tables; then one warp does the phases,
// in which sets of ranks are words of bits, one rank or one expert to a lane, and no step waits for more than a warp.
#include "dispatch/cuda/engine/launch.hpp"
#include "dispatch/cuda/quotas/batch_quotas.hpp"
#include "dispatch/cuda/quotas/quota_tables.cuh"

namespace epistle::cuda {
namespace {

/// A set of ranks, the same in all lanes or each lane's own.
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

/// The phases, by the first warp.
template <int kWords>
class Phases {
 public:
  using Set = RankSet<kWords>;

  __device__ Phases(const BatchQuotasArgs& args, const QuotaTables& tables, QuotaTotals& totals, std::int32_t target)
      : args_(args), t_(tables), totals_(totals), target_(target), lane_(static_cast<int>(threadIdx.x) & 31) {
#pragma unroll
    for (int w = 0; w < kWords; ++w) holding_.word[w] = totals.holding[w];
  }

  __device__ void run() {
    while (true) {
      find_sides();
      if (!above_.any()) return;
      const int outermost = search();
      const Set stuck = above_.without(reached_);
      if (stuck.any()) {
        raise_target(stuck);
        continue;
      }
      find_routes();
      __syncwarp();
      for (int level = outermost; level > 0; --level) {
#pragma unroll
        for (int w = 0; w < kWords; ++w) {
          if (rank_level_[w] == level) pass_on(w * 32 + lane_, level);
        }
        __syncwarp();
      }
    }
  }

 private:
  __device__ void find_sides() {
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const std::int32_t load = totals_.rank_load[w * 32 + lane_];
      const bool holds = (holding_.word[w] >> lane_ & 1U) != 0;
      above_.word[w] = __ballot_sync(kAllLanes, load > target_);
      reached_.word[w] = __ballot_sync(kAllLanes, holds && load < target_);
      rank_level_[w] = holds && load < target_ ? 0 : -1;
    }
  }

  [[nodiscard]] __device__ Set load_set(const std::uint32_t* sets, int number) const {
    Set set;
#pragma unroll
    for (int w = 0; w < kWords; ++w) set.word[w] = sets[w * args_.num_experts + number];
    return set;
  }

  /// Of one lane: `body` is called with the number of every replicated expert of its own.
  template <typename Body>
  __device__ void for_experts(const Body& body) const {
#pragma unroll 2
    for (int number = lane_; number < totals_.num_replicated; number += 32) body(number);
  }

  /// Which ranks have some of an expert, as of the beginning of the phase.
  __device__ void find_givers(int number) {
    const std::uint32_t span = t_.span[number];
    const int begin = static_cast<int>(span & 0xffffU);
    const int end = begin + static_cast<int>(span >> 16U);
    Set givers;
#pragma unroll 2
    for (int i = begin; i < end; ++i) {
      const int rank = t_.rank_of[i];
      const std::uint32_t bit = t_.share[i] > 0 ? 1U << (rank & 31) : 0;
#pragma unroll
      for (int w = 0; w < kWords; ++w) givers.word[w] |= rank / 32 == w ? bit : 0;
    }
#pragma unroll
    for (int w = 0; w < kWords; ++w) t_.givers[w * args_.num_experts + number] = givers.word[w];
    t_.route[number] = 0;
  }

  /// Experts of one lane that are looked at together, so that their words are on their way at the same time.
  static constexpr int kTogether = 4;

  /// Adds the givers of the lane's experts of which a rank that was reached has a replica, and notes the level.
  __device__ void reach(int level, Set& added) {
    for (int first = lane_; first < totals_.num_replicated; first += 32 * kTogether) {
      Set holders[kTogether];
      Set givers[kTogether];
      std::uint32_t route[kTogether];
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        const int number = first + 32 * j;
        route[j] = 1;
        if (number >= totals_.num_replicated) continue;
        holders[j] = load_set(t_.holders, number);
        givers[j] = load_set(t_.givers, number);
        route[j] = t_.route[number];
      }
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        if (route[j] != 0 || !holders[j].both(reached_).any()) continue;
        added.add(givers[j]);
        t_.route[first + 32 * j] = Route::to(0, 0, level).word;
      }
    }
  }

  __device__ int search() {
    for_experts([this](int number) { find_givers(number); });
    int level = 0;
    while (above_.without(reached_).any()) {
      ++level;
      Set added;
      reach(level, added);
      added = added.of_warp().without(reached_);
      if (!added.any()) break;
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        if ((added.word[w] >> lane_ & 1U) != 0) rank_level_[w] = level;
      }
      reached_.add(added);
    }
    return level;
  }

  /// The emptiest of an expert's ranks that were reached first takes what its others pass on: all those are of one
  /// level.
  __device__ void find_routes() {
#pragma unroll
    for (int w = 0; w < kWords; ++w) totals_.rank_level[w * 32 + lane_] = rank_level_[w];
    __syncwarp();
    for_experts([this](int number) {
      const int level = Route{t_.route[number]}.level();
      if (level == 0) return;
      const std::uint32_t span = t_.span[number];
      const int begin = static_cast<int>(span & 0xffffU);
      const int end = begin + static_cast<int>(span >> 16U);
      int best = -1;
      int best_rank = 0;
      std::int32_t least = 0;
#pragma unroll 2
      for (int i = begin; i < end; ++i) {
        const int rank = t_.rank_of[i];
        const std::int32_t load = totals_.rank_load[rank];
        const bool is_better = totals_.rank_level[rank] == level - 1 && (best < 0 || load < least);
        best = is_better ? i : best;
        best_rank = is_better ? rank : best_rank;
        least = is_better ? load : least;
      }
      t_.route[number] = Route::to(best, best_rank, level).word;
    });
  }

  /// To the mean of the ranks that what is stuck can go to at all.
  __device__ void raise_target(Set stuck) {
    while (true) {
      Set grown;
      for_experts([&](int number) {
        const Set holders = load_set(t_.holders, number);
        if (load_set(t_.givers, number).both(stuck).any()) grown.add(holders);
      });
      grown = grown.of_warp().without(stuck);
      if (!grown.any()) break;
      stuck.add(grown);
    }
    std::uint32_t load = 0;
    int count = 0;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      if ((stuck.word[w] >> lane_ & 1U) != 0) load += static_cast<std::uint32_t>(totals_.rank_load[w * 32 + lane_]);
      count += __popc(stuck.word[w]);
    }
    target_ = mean_of_ranks(static_cast<std::int32_t>(__reduce_add_sync(kAllLanes, load)), count);
  }

  /// What a rank has too much goes one level further in. Nothing that is read here is written by another rank of the
  /// level: those that take are all of the level below.
  __device__ void pass_on(int rank, int level) {
    const int count = rank < args_.num_ranks ? totals_.num_entries[rank] : 0;
    std::int32_t surplus = totals_.rank_load[rank] - target_;
    if (surplus <= 0) return;
    const std::uint32_t* own = t_.own + rank * args_.slots_per_rank;
#pragma unroll 2
    for (int idx = 0; idx < count; ++idx) {
      const int entry = static_cast<int>(own[idx] & 0xffffU);
      const Route route{t_.route[own[idx] >> 16U]};
      const std::int32_t share = t_.share[entry];
      const std::int32_t amount = route.level() == level ? min(surplus, share) : 0;
      if (amount == 0) continue;
      t_.share[entry] = share - amount;
      surplus -= amount;
      atomicAdd(&t_.share[route.entry()], amount);
      atomicAdd(&totals_.rank_load[route.rank()], amount);
    }
    totals_.rank_load[rank] = surplus + target_;
  }

  const BatchQuotasArgs& args_;
  const QuotaTables& t_;
  QuotaTotals& totals_;
  std::int32_t target_;
  int lane_;
  Set holding_;
  Set above_;
  Set reached_;
  int rank_level_[kWords] = {};
};

template <int kWords>
__global__ void __launch_bounds__(kQuotaThreads, 1) batch_quotas_kernel(const __grid_constant__ BatchQuotasArgs args) {
  extern __shared__ __align__(16) std::byte quota_memory[];
  __shared__ QuotaTotals totals;
  const QuotaTables tables = QuotaTables::at(quota_memory, args.num_experts, args.num_columns());
  if (threadIdx.x < kMaxRankWords * 32) totals.rank_load[threadIdx.x] = 0;
  if (threadIdx.x < kMaxRankWords) totals.holding[threadIdx.x] = 0;
  read_all(args, tables, totals);
  __syncthreads();
  const int shift = shift_of(totals);
  count_replicated(args, tables);
  __syncthreads();
  number_replicated(args, tables, totals);
  __syncthreads();
  split_evenly(args, tables, totals, shift);
  __syncthreads();
  list_entries(args, tables, totals);
  __syncthreads();
  if (threadIdx.x < 32) {
    std::int32_t units = 0;
    int holders = 0;
    for (int w = 0; w < kWords; ++w) {
      units += totals.rank_load[w * 32 + static_cast<int>(threadIdx.x)];
      holders += __popc(totals.holding[w]);
    }
    units = static_cast<std::int32_t>(__reduce_add_sync(kAllLanes, static_cast<std::uint32_t>(units)));
    Phases<kWords>(args, tables, totals, mean_of_ranks(units, holders)).run();
  }
  __syncthreads();
  write_quotas(args, tables, totals, shift);
}

using QuotaKernel = void (*)(BatchQuotasArgs);

/// The instance for so many ranks.
QuotaKernel kernel_for(int num_ranks) {
  static_assert(kMaxRankWords == 3, "an instance for every number of words");
  if (num_ranks <= 32) return batch_quotas_kernel<1>;
  return num_ranks <= 64 ? batch_quotas_kernel<2> : batch_quotas_kernel<3>;
}

std::int64_t shared_bytes(const BatchQuotasArgs& args) {
  return QuotaTables::num_bytes(args.num_experts, args.num_columns());
}

}  // namespace

cudaError_t load_batch_quotas(const BatchQuotasArgs& shape) {
  return allow_all_shared_memory(reinterpret_cast<const void*>(kernel_for(shape.num_ranks)));
}

cudaError_t launch_batch_quotas(const BatchQuotasArgs& args, cudaStream_t stream) {
  kernel_for(args.num_ranks)<<<1, kQuotaThreads, static_cast<std::size_t>(shared_bytes(args)), stream>>>(args);
  return cudaGetLastError();
}

}  // namespace epistle::cuda
