// First part of a phase: which ranks and experts can be reached from the ranks below the target, level by level. One
// warp does it, in which sets of ranks are words of bits and experts are shared out to lanes; it waits for nobody. What
// it finds is left in QuotaTotals and the levels of routes.
#pragma once

#include "dispatch/cuda/quotas/quota_tables.cuh"
#include "dispatch/cuda/quotas/rank_set.cuh"

namespace epistle::cuda {

template <int kWords>
class QuotaSearch {
 public:
  using Set = RankSet<kWords>;

  __device__ QuotaSearch(const BatchQuotasArgs& args, const QuotaTables& tables, QuotaTotals& totals,
                         std::int32_t target)
      : args_(args), t_(tables), totals_(totals), target_(target), lane_(static_cast<int>(threadIdx.x) & 31) {
#pragma unroll
    for (int w = 0; w < kWords; ++w) holding_.word[w] = totals.holding[w];
#pragma unroll
    for (int j = 0; j < kKept; ++j) holders_[j] = load_kept(t_.holders, j);
  }

  /// Until no rank is above the target, or every one of these was reached: then there is something to pass on.
  __device__ void run() {
    int outermost = 0;
    while (true) {
      find_sides();
      if (!above_.any()) break;
      outermost = search();
      const Set stuck = above_.without(reached_);
      if (!stuck.any()) break;
      raise_target(stuck);
      outermost = 0;
    }
    if (outermost > 0) tell_levels();
    if (lane_ != 0) return;
    totals_.outermost = outermost;
    totals_.target = target_;
  }

 private:
  /// Experts of a lane that are kept in registers: 128 of all lanes. Others are looked up.
  static constexpr int kKept = 4;

  __device__ void find_sides() {
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const std::int32_t load = totals_.rank_load[w * 32 + lane_];
      const bool is_below = (holding_.word[w] >> lane_ & 1U) != 0 && load < target_;
      above_.word[w] = __ballot_sync(kAllLanes, load > target_);
      reached_.word[w] = __ballot_sync(kAllLanes, is_below);
      rank_level_[w] = is_below ? 0 : -1;
    }
    tell_ranks(0, reached_);
  }

  /// By one lane: a lane for each word would have to look it up, so that the sets were kept in memory.
  __device__ void tell_ranks(int level, const Set& ranks) {
    if (lane_ != 0) return;
#pragma unroll
    for (int w = 0; w < kWords; ++w) totals_.level_ranks[level][w] = ranks.word[w];
  }

  [[nodiscard]] __device__ Set load_set(const std::uint32_t* sets, int number) const {
    Set set;
#pragma unroll
    for (int w = 0; w < kWords; ++w) set.word[w] = sets[w * args_.num_experts + number];
    return set;
  }
  [[nodiscard]] __device__ Set load_kept(const std::uint32_t* sets, int j) const {
    const int number = lane_ + 32 * j;
    Set set;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      if (number < totals_.num_replicated) set.word[w] = sets[w * args_.num_experts + number];
    }
    return set;
  }

  /// Adds the givers of the lane's experts of which a rank that was reached has a replica, and notes the level.
  __device__ void reach(int level, Set& added) {
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      if (level_[j] != 0 || !holders_[j].both(reached_).any()) continue;
      added.add(givers_[j]);
      level_[j] = level;
    }
    for (int number = lane_ + 32 * kKept; number < totals_.num_replicated; number += 32) {
      if (t_.route[number] != 0 || !load_set(t_.holders, number).both(reached_).any()) continue;
      added.add(load_set(t_.givers, number));
      t_.route[number] = Route::to(0, 0, level).word;
    }
  }

  __device__ int search() {
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      givers_[j] = load_kept(t_.givers, j);
      level_[j] = 0;
    }
    for (int number = lane_ + 32 * kKept; number < totals_.num_replicated; number += 32) t_.route[number] = 0;
    int level = 0;
    while (above_.without(reached_).any()) {
      ++level;
      Set added;
      reach(level, added);
      added = added.of_warp().without(reached_);
      if (!added.any()) break;
      tell_ranks(level, added);
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        if ((added.word[w] >> lane_ & 1U) != 0) rank_level_[w] = level;
      }
      reached_.add(added);
    }
    return level;
  }

  __device__ void tell_levels() {
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      const int number = lane_ + 32 * j;
      if (number < totals_.num_replicated) t_.route[number] = Route::to(0, 0, level_[j]).word;
    }
#pragma unroll
    for (int w = 0; w < kWords; ++w) totals_.rank_level[w * 32 + lane_] = rank_level_[w];
  }

  /// To the mean of the ranks that what is stuck can go to at all.
  __device__ void raise_target(Set stuck) {
    while (true) {
      Set grown;
#pragma unroll
      for (int j = 0; j < kKept; ++j) {
        if (givers_[j].both(stuck).any()) grown.add(holders_[j]);
      }
      for (int number = lane_ + 32 * kKept; number < totals_.num_replicated; number += 32) {
        const Set holders = load_set(t_.holders, number);
        if (load_set(t_.givers, number).both(stuck).any()) grown.add(holders);
      }
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

  const BatchQuotasArgs& args_;
  const QuotaTables& t_;
  QuotaTotals& totals_;
  std::int32_t target_;
  int lane_;
  Set holding_;
  Set above_;
  Set reached_;
  int rank_level_[kWords] = {};
  Set holders_[kKept];
  Set givers_[kKept];
  int level_[kKept] = {};  // 0 = not reached
};

}  // namespace epistle::cuda
