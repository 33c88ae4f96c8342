#include "balance/component_bound.hpp"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <optional>
#include <vector>

namespace epistle::balance {
namespace {

// All sets of hot experts are gone through: 3^12 pairs of a set and a part of it.
constexpr std::size_t kMaxHot = 12;
constexpr int kNumHalvings = 20;  // of the total: to a millionth of it

class Components {
 public:
  Components(std::span<const std::int64_t> loads, std::int64_t num_ranks, std::int64_t slots_per_rank)
      : num_ranks_(num_ranks),
        slots_per_rank_(slots_per_rank),
        num_extra_(num_ranks * slots_per_rank - static_cast<std::int64_t>(loads.size())),
        ascending_(loads.begin(), loads.end()),
        sum_of_coolest_(loads.size() + 1, 0.0) {
    std::sort(ascending_.begin(), ascending_.end());
    for (std::size_t idx = 0; idx < ascending_.size(); ++idx) {
      sum_of_coolest_[idx + 1] = sum_of_coolest_[idx] + static_cast<double>(ascending_[idx]);
    }
  }

  [[nodiscard]] double total() const { return sum_of_coolest_.back(); }

  /// False where no placement keeps all ranks at or below `largest`.
  [[nodiscard]] bool is_possible(double largest) const {
    std::vector<Hot> hot;
    std::int64_t alone = 0;  // slots that they take, each in a component of its own
    for (std::size_t from_hottest = 1; from_hottest <= ascending_.size(); ++from_hottest) {
      const auto its_load = static_cast<double>(ascending_[ascending_.size() - from_hottest]);
      const Need need = need_of({.load = its_load, .num_hot = 1, .max_components = 1}, largest);
      // Others count as cool ones do, which only makes more possible. One that fits on one rank is hot if only just.
      constexpr double kTight = 0.02;
      if (hot.size() == kMaxHot || (need.extra_slots == 0 && need.room > kTight * largest)) break;
      hot.push_back({.load = its_load, .room = need.room});
      alone += need.extra_slots;
    }
    if (alone <= num_extra_) return true;
    // Those that have least room to spare come last: least_extra() looks at what they take together.
    std::stable_sort(hot.begin(), hot.end(), [](const Hot& a, const Hot& b) { return a.room > b.room; });
    return least_extra(hot, largest) <= num_extra_;
  }

 private:
  struct Hot {
    double load = 0.0;
    double room = 0.0;
  };
  /// Hot experts in components that hold no others.
  struct Together {
    double load = 0.0;
    std::int64_t num_hot = 0;
    std::int64_t max_components = 1;
  };
  struct Need {
    std::int64_t extra_slots = 0;  ///< beyond one for each expert
    double room = 0.0;             ///< load that would still fit, of each of its ranks
  };

  [[nodiscard]] Need need_of(const Together& together, double largest) const {
    Need least{.extra_slots = num_extra_ + 1};
    for (std::int64_t ranks = 1; ranks <= num_ranks_ && ranks - together.max_components <= least.extra_slots; ++ranks) {
      const double room = static_cast<double>(ranks) * largest - together.load;
      const std::int64_t max_others = (slots_per_rank_ - 1) * ranks + together.max_components - together.num_hot;
      if (room < 0.0 || max_others < 0) continue;
      const auto end = std::upper_bound(sum_of_coolest_.begin(), sum_of_coolest_.end(), room);
      const std::int64_t others = std::min<std::int64_t>(end - sum_of_coolest_.begin() - 1, max_others);
      const std::int64_t extra = slots_per_rank_ * ranks - together.num_hot - others;
      const Need need{.extra_slots = extra,
                      .room = (room - sum_of_coolest_[static_cast<std::size_t>(others)]) / static_cast<double>(ranks)};
      if (extra < least.extra_slots || (extra == least.extra_slots && need.room > least.room)) least = need;
    }
    return least;
  }

  /// Slots beyond one for each expert that components with all these take, put together as takes fewest.
  [[nodiscard]] std::int64_t least_extra(const std::vector<Hot>& hot, double largest) const {
    const std::size_t num_sets = std::size_t{1} << hot.size();
    std::vector<std::int64_t> one(num_sets, 0);  // in one component
    std::vector<std::int64_t> least(num_sets, 0);
    for (std::size_t set = 1; set < num_sets; ++set) {
      Together together;
      for (std::size_t idx = 0; idx < hot.size(); ++idx) {
        if ((set >> idx & 1U) == 0) continue;
        together.load += hot[idx].load;
        ++together.num_hot;
      }
      one[set] = need_of(together, largest).extra_slots;
      // Of all partitions: the part that holds the first expert of the set, and the best of the rest.
      const std::size_t first = set & (~set + 1);
      least[set] = one[set];
      for (std::size_t part = (set - 1) & set; part > 0; part = (part - 1) & set) {
        if ((part & first) != 0) least[set] = std::min(least[set], one[part] + least[set ^ part]);
      }
      // However they are put together: the coolest experts are there only once.
      together.max_components = together.num_hot;
      least[set] = std::max(least[set], need_of(together, largest).extra_slots);
    }
    return least.back();
  }

  std::int64_t num_ranks_;
  std::int64_t slots_per_rank_;
  std::int64_t num_extra_;
  std::vector<std::int64_t> ascending_;
  std::vector<double> sum_of_coolest_;  // [num_experts + 1]
};

/// Slots of every rank that has any; nothing where they differ.
std::optional<std::int32_t> slots_per_rank(const Cluster& cluster) {
  std::optional<std::int32_t> slots;
  for (const std::int32_t num_slots : cluster.slots_of_rank) {
    if (num_slots == 0) continue;
    if (slots && *slots != num_slots) return std::nullopt;
    slots = num_slots;
  }
  return slots;
}

}  // namespace

double component_bound(std::span<const std::int64_t> loads, const Cluster& cluster) {
  const std::optional<std::int32_t> slots = slots_per_rank(cluster);
  if (!slots) return 0.0;
  const std::int64_t num_ranks = cluster.num_holders();
  const Components components(loads, num_ranks, *slots);
  // With a slot to spare on every rank all ranks can be one component.
  if (num_ranks * *slots - static_cast<std::int64_t>(loads.size()) >= num_ranks - 1) return 0.0;
  double below = components.total() / static_cast<double>(num_ranks);
  double above = components.total();
  if (components.is_possible(below)) return below;
  for (int halving = 0; halving < kNumHalvings; ++halving) {
    const double between = (below + above) / 2.0;
    (components.is_possible(between) ? above : below) = between;
  }
  return below;
}

}  // namespace epistle::balance
