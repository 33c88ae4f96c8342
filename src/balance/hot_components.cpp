#include "balance/hot_components.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace epistle::balance {
namespace {

// All sets of hot experts are gone through: 3^12 pairs of a set and a part of it.
constexpr std::size_t kMaxHot = 12;
constexpr double kRounding = 1e-9;  // of a load

}  // namespace

std::optional<std::int32_t> even_slots(std::span<const std::int32_t> slots_of_rank) {
  std::optional<std::int32_t> slots;
  for (const std::int32_t num_slots : slots_of_rank) {
    if (num_slots == 0) continue;
    if (slots && *slots != num_slots) return std::nullopt;
    slots = num_slots;
  }
  return slots;
}

HotComponents::HotComponents(std::span<const std::int64_t> loads, std::int64_t num_ranks, std::int64_t slots_per_rank)
    : num_ranks_(num_ranks),
      slots_per_rank_(slots_per_rank),
      num_extra_(num_ranks * slots_per_rank - static_cast<std::int64_t>(loads.size())),
      by_heat_(loads.size()),
      sum_of_coolest_(loads.size() + 1, 0.0) {
  std::iota(by_heat_.begin(), by_heat_.end(), std::size_t{0});
  std::stable_sort(by_heat_.begin(), by_heat_.end(), [&](std::size_t a, std::size_t b) { return loads[a] > loads[b]; });
  for (const std::size_t expert : by_heat_) load_.push_back(static_cast<double>(loads[expert]));
  for (std::size_t idx = 0; idx < load_.size(); ++idx) {
    sum_of_coolest_[idx + 1] = sum_of_coolest_[idx] + load_[load_.size() - 1 - idx];
  }
}

/// All ways to put hot experts together. Sets of them are words of bits; a component is a set and a number of ranks. It
/// takes as many others as its slots allow: with fewer it would take as many slots more than experts as one of more
/// ranks, which has more room.
struct HotComponents::Search {
  struct Part {
    std::size_t set = 0;
    std::int64_t num_ranks = 0;
    std::int64_t num_others = 0;
    double room = 0.0;
  };

  Search(const HotComponents& owner, double limit, std::int64_t steps)
      : all(owner),
        largest(limit),
        steps_left(steps),
        num_sets(std::size_t{1} << owner.num_hot(limit)),
        load(num_sets, 0.0),
        size(num_sets, 0),
        min_ranks(num_sets, 0),
        least_extra(num_sets, 0) {
    for (std::size_t set = 1; set < num_sets; ++set) {
      const std::size_t without_first = set & (set - 1);
      const auto first = static_cast<std::size_t>(__builtin_ctzll(set));
      load[set] = load[without_first] + all.load_[first];
      size[set] = size[without_first] + 1;
      min_ranks[set] = min_ranks_of(set);
    }
    for (std::size_t set = 1; set < num_sets; ++set) least_extra[set] = least_extra_of(set);
  }

  [[nodiscard]] Answer run() {
    const std::size_t everything = num_sets - 1;
    if (least_extra[everything] > all.num_extra_) return Answer::kNo;
    return put_together(everything, all.num_extra_);
  }

  /// Ranks that are enough for a component of these, beside the coolest of all; more than there are: none.
  [[nodiscard]] std::int64_t min_ranks_of(std::size_t set) const {
    auto ranks = std::max<std::int64_t>(1, static_cast<std::int64_t>(std::ceil(load[set] / largest - kRounding)));
    for (; ranks <= all.num_ranks_; ++ranks) {
      const Part part = part_of(set, ranks);
      if (part.num_others >= 0 && fits(part.num_others, part.room)) break;
    }
    return ranks;
  }

  [[nodiscard]] Part part_of(std::size_t set, std::int64_t ranks) const {
    return {.set = set,
            .num_ranks = ranks,
            .num_others = (all.slots_per_rank_ - 1) * ranks + 1 - size[set],
            .room = static_cast<double>(ranks) * largest - load[set]};
  }

  /// Whether the coolest, so many, may fit. Only as long as ranks full of such ones would be light: with heavier ones
  /// fewer ranks than part_of() takes could be better.
  [[nodiscard]] bool fits(std::int64_t num_others, double room) const {
    const auto others = static_cast<std::size_t>(num_others);
    if (others >= all.load_.size()) return true;
    const double heaviest = others == 0 ? 0.0 : all.load_[all.load_.size() - others];
    if (heaviest * static_cast<double>(all.slots_per_rank_) > largest) return true;
    return all.sum_of_coolest_[others] <= room + kRounding * largest;
  }

  /// Of all partitions: the part that holds the first expert of the set, and the best of the rest.
  [[nodiscard]] std::int64_t least_extra_of(std::size_t set) const {
    const std::size_t first = set & (~set + 1);
    const std::size_t others = set ^ first;
    std::int64_t least = min_ranks[set] - 1;
    for (std::size_t sub = others; sub > 0; sub = (sub - 1) & others) {
      least = std::min(least, min_ranks[set ^ sub] - 1 + least_extra[sub]);
    }
    return least;
  }

  [[nodiscard]] Answer put_together(std::size_t rest, std::int64_t extra_left) {
    if (--steps_left < 0) return Answer::kUnknown;
    if (!have_room_together()) return Answer::kNo;
    if (rest == 0) return Answer::kYes;
    const std::size_t first = rest & (~rest + 1);
    const std::size_t others = rest ^ first;
    for (std::size_t sub = others;; sub = (sub - 1) & others) {
      const std::size_t set = first | sub;
      const std::int64_t most_extra = extra_left - least_extra[rest ^ set];
      for (std::int64_t ranks = min_ranks[set]; ranks - 1 <= most_extra && ranks <= all.num_ranks_; ++ranks) {
        parts.push_back(part_of(set, ranks));
        const Answer answer = put_together(rest ^ set, extra_left - (ranks - 1));
        if (answer != Answer::kNo) return answer;
        parts.pop_back();
      }
      if (sub == 0) return Answer::kNo;
    }
  }

  /// Of the components that have least room for their others any number must have room for the coolest together.
  [[nodiscard]] bool have_room_together() const {
    std::vector<Part> tightest = parts;
    const auto room_of_one = [](const Part& part) {
      return part.num_others == 0 ? std::numeric_limits<double>::infinity()
                                  : part.room / static_cast<double>(part.num_others);
    };
    std::sort(tightest.begin(), tightest.end(),
              [&](const Part& a, const Part& b) { return room_of_one(a) < room_of_one(b); });
    double room = 0.0;
    std::int64_t num_others = 0;
    return std::all_of(tightest.begin(), tightest.end(), [&](const Part& part) {
      room += part.room;
      num_others += part.num_others;
      return fits(num_others, room);
    });
  }

  const HotComponents& all;
  double largest;
  std::int64_t steps_left;
  std::size_t num_sets;
  std::vector<double> load;
  std::vector<std::int64_t> size;
  std::vector<std::int64_t> min_ranks;
  std::vector<std::int64_t> least_extra;  // in components that hold no others
  std::vector<Part> parts;
};

std::size_t HotComponents::num_hot(double largest) const {
  // Others count as cool ones do, which only makes more possible. One that fits on one rank is hot if only just.
  constexpr double kTight = 0.02;
  const auto others = std::min(static_cast<std::size_t>(slots_per_rank_ - 1), load_.size() - 1);
  std::size_t count = 0;
  while (count < std::min(kMaxHot, load_.size()) && load_[count] + sum_of_coolest_[others] > largest * (1.0 - kTight)) {
    ++count;
  }
  return count;
}

HotComponents::Answer HotComponents::find(double largest, std::int64_t max_steps,
                                          std::vector<HotComponent>& way) const {
  way.clear();
  Search search(*this, largest, max_steps);
  const Answer answer = search.run();
  if (answer != Answer::kYes) return answer;
  for (const Search::Part& part : search.parts) {
    HotComponent& component = way.emplace_back();
    component.num_ranks = part.num_ranks;
    component.num_others = part.num_others;
    for (std::size_t idx = 0; part.set >> idx != 0; ++idx) {
      if ((part.set >> idx & 1U) != 0) component.experts.push_back(by_heat_[idx]);
    }
  }
  return answer;
}

}  // namespace epistle::balance
