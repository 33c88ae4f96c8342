// Quotas of a batch (see layout/batch_shares.hpp for how). All threads fill the tables. In a phase one warp searches,
// and then all threads pass on what ranks have too much: a lane for every slot, so that a level takes as long as one
// slot.
#include "dispatch/cuda/device/signals.cuh"
#include "dispatch/cuda/device/start_kernel.cuh"
#include "dispatch/cuda/engine/launch.hpp"
#include "dispatch/cuda/quotas/batch_quotas.hpp"
#include "dispatch/cuda/quotas/quota_search.cuh"
#include "dispatch/cuda/quotas/quota_tables.cuh"

namespace epistle::cuda {
namespace {

/// The emptiest of an expert's ranks that were reached first takes what its others pass on: all those are of one level.
/// Its entries are ascending by rank. Ranks are looked up some at a time, so that their loads are on their way
/// together.
template <int kWords>
__device__ void find_routes(const BatchQuotasArgs& args, const QuotaTables& t, const QuotaTotals& totals) {
  constexpr int kTogether = 4;
  for (int number = threadIdx.x; number < totals.num_replicated; number += kQuotaThreads) {
    const int level = Route{t.route[number]}.level();
    if (level == 0) continue;
    int entry = static_cast<int>(t.span[number] & 0xffffU);
    int best = -1;
    int best_rank = 0;
    std::int32_t least = 0;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const std::uint32_t holders = t.holders[w * args.num_experts + number];
      std::uint32_t left = holders & totals.level_ranks[level - 1][w];
      while (left != 0) {
        int bit[kTogether];
        std::int32_t load[kTogether];
#pragma unroll
        for (int j = 0; j < kTogether; ++j) {
          bit[j] = __ffs(static_cast<int>(left)) - 1;
          left &= left - 1;
          load[j] = bit[j] >= 0 ? totals.rank_load[w * 32 + bit[j]] : 0;
        }
#pragma unroll
        for (int j = 0; j < kTogether; ++j) {
          if (bit[j] < 0 || (best >= 0 && load[j] >= least)) continue;
          best = entry + __popc(holders & ((1U << bit[j]) - 1));
          best_rank = w * 32 + bit[j];
          least = load[j];
        }
      }
      entry += __popc(holders);
    }
    t.route[number] = Route::to(best, best_rank, level).word;
  }
}

/// What the ranks of a level have too much goes one level further in. A lane has a slot; a warp has as many ranks at a
/// time as it has room for, or the slots of one rank in turns.
class Passing {
 public:
  __device__ Passing(const BatchQuotasArgs& args, const QuotaTables& tables, QuotaTotals& totals)
      : args_(args), t_(tables), totals_(totals) {
    while ((1 << shift_) < args.slots_per_rank && shift_ < 5) ++shift_;
    const int lane = static_cast<int>(threadIdx.x) & 31;
    idx_ = lane & (lanes() - 1);
    rank_ = (static_cast<int>(threadIdx.x) / 32 << (5 - shift_)) + (lane >> shift_);
    own_ = own_of(rank_, idx_);
  }

  __device__ void pass_on(int level) {
    const std::int32_t target = totals_.target;
    const int step = kQuotaWarps << (5 - shift_);
    const int first_of_warp = static_cast<int>(threadIdx.x) / 32 << (5 - shift_);
    for (int first = first_of_warp; first < args_.num_ranks; first += step) {
      const int rank = rank_ + first - first_of_warp;
      const bool is_inside = rank < args_.num_ranks;
      const bool is_of_level = is_inside && totals_.rank_level[rank] == level;
      std::int32_t surplus = is_of_level ? max(totals_.rank_load[rank] - target, 0) : 0;
      if (__ballot_sync(kAllLanes, surplus > 0) == 0) continue;
      const bool has_surplus = surplus > 0;
      for (int begin = 0; begin < args_.slots_per_rank; begin += lanes()) {
        const std::uint32_t own = rank == rank_ && begin == 0 ? own_ : own_of(rank, begin + idx_);
        surplus -= min(surplus, share_out(rank, own, level, surplus));
      }
      if (has_surplus && idx_ == 0) totals_.rank_load[rank] = target + surplus;
    }
  }

 private:
  [[nodiscard]] __device__ int lanes() const { return 1 << shift_; }
  [[nodiscard]] __device__ std::uint32_t own_of(int rank, int idx) const {
    const bool is_inside = rank < args_.num_ranks && idx < args_.slots_per_rank;
    return is_inside ? t_.own[rank * args_.slots_per_rank + idx] : kNoEntry;
  }

  /// The slots of some lanes take their turns; returns what all of a rank's could give. Nothing that is read here is
  /// written by another rank of the level: those that take are all of the level below.
  __device__ std::int32_t share_out(int rank, std::uint32_t own, int level, std::int32_t surplus) const {
    const bool is_replicated = own != kNoEntry;
    const int entry = static_cast<int>(own & 0xffffU);
    const Route route{is_replicated ? t_.route[own >> 16U] : 0};
    const std::int32_t held = is_replicated ? t_.share[entry] : 0;
    const std::int32_t share = route.level() == level ? held : 0;
    std::int32_t sum = share;  // of the slots up to this one
    for (int step = 1; step < lanes(); step *= 2) {
      const std::int32_t before = __shfl_up_sync(kAllLanes, sum, static_cast<unsigned>(step), lanes());
      if (idx_ >= step) sum += before;
    }
    const std::int32_t amount = max(min(surplus - (sum - share), share), 0);
    if (amount > 0) {
      t_.share[entry] = share - amount;
      atomicAdd(&t_.share[route.entry()], amount);
      atomicAdd(&totals_.rank_load[route.rank()], amount);
      std::uint32_t* givers = t_.givers + (own >> 16U);
      atomicOr(givers + route.rank() / 32 * args_.num_experts, 1U << (route.rank() & 31));
      if (amount == share) atomicAnd(givers + rank / 32 * args_.num_experts, ~(1U << (rank & 31)));
    }
    return __shfl_sync(kAllLanes, sum, lanes() - 1, lanes());
  }

  const BatchQuotasArgs& args_;
  const QuotaTables& t_;
  QuotaTotals& totals_;
  int shift_ = 0;      // lanes of a rank: so many powers of two
  int rank_;           // the first one of this lane
  int idx_;            // its slot among those of the rank
  std::uint32_t own_;  // what stands there
};

/// The mean of all ranks that have slots; by one warp.
template <int kWords>
__device__ std::int32_t first_target(const QuotaTotals& totals) {
  std::uint32_t units = 0;
  int holders = 0;
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    units += static_cast<std::uint32_t>(totals.rank_load[w * 32 + (static_cast<int>(threadIdx.x) & 31)]);
    holders += __popc(totals.holding[w]);
  }
  return mean_of_ranks(static_cast<std::int32_t>(__reduce_add_sync(kAllLanes, units)), holders);
}

template <int kWords>
__global__ void __launch_bounds__(kQuotaThreads, 1) batch_quotas_kernel(const __grid_constant__ BatchQuotasArgs args) {
  extern __shared__ __align__(16) std::byte quota_memory[];
  __shared__ QuotaTotals totals;
  const QuotaTables tables = QuotaTables::at(quota_memory, args.num_experts, args.num_columns());
  if (threadIdx.x < kMaxRankWords * 32) totals.rank_load[threadIdx.x] = 0;
  if (threadIdx.x < kMaxRankWords) totals.holding[threadIdx.x] = 0;
  if (threadIdx.x == 0) totals.num_replicated = 0;
  if (args.early_start) wait_for_kernel_before();
  // A layout behind this starts while this runs, and waits for its end itself: its launch takes no time of its own. It
  // holds its SMs meanwhile, but this kernel has all that it needs, and waits for nobody.
  let_next_kernel_start();
  read_all(args, tables, totals);
  __syncthreads();
  const int shift = shift_of(totals);
  number_experts(args, tables, totals);
  __syncthreads();
  split_evenly(args, tables, totals, shift);
  __syncthreads();
  Passing passing(args, tables, totals);
  QuotaSearch<kWords> search(args, tables, totals, first_target<kWords>(totals));
  while (true) {
    if (threadIdx.x < 32) search.run();
    __syncthreads();
    const int outermost = totals.outermost;
    if (outermost == 0) break;
    find_routes<kWords>(args, tables, totals);
    __syncthreads();
    for (int level = outermost; level > 0; --level) {
      passing.pass_on(level);
      __syncthreads();
    }
  }
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
  return start_kernel(kernel_for(args.num_ranks), {1, kQuotaThreads, shared_bytes(args)}, args.early_start, args,
                      stream);
}

}  // namespace epistle::cuda
