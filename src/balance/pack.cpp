#include "balance/pack.hpp"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <numeric>
#include <queue>
#include <utility>

namespace epistle::balance {
namespace {

struct Item {
  std::int64_t load = 0;  // of one replica
  std::int32_t expert = 0;
};

bool hotter(const Item& a, const Item& b) { return a.load != b.load ? a.load > b.load : a.expert < b.expert; }

constexpr int kIdBits = 23;  // loads take 40 bits and a sign

/// All experts, the hottest first.
std::vector<Item> sort_by_load(std::span<const std::int64_t> loads) {
  // One word for load and id sorts faster than a pair.
  std::vector<std::uint64_t> words(loads.size());
  constexpr std::uint64_t kIdMask = (std::uint64_t{1} << kIdBits) - 1;
  for (std::size_t expert = 0; expert < loads.size(); ++expert) {
    words[expert] = (static_cast<std::uint64_t>(kMaxTotalLoad - loads[expert]) << kIdBits) | expert;
  }
  std::sort(words.begin(), words.end());
  std::vector<Item> items(loads.size());
  for (std::size_t place = 0; place < words.size(); ++place) {
    const auto expert = static_cast<std::int32_t>(words[place] & kIdMask);
    items[place] = {.load = loads[static_cast<std::size_t>(expert)], .expert = expert};
  }
  return items;
}

/// Replicas of the hottest experts, one after the other: always of that with the largest load per replica.
class ReplicaGiver {
 public:
  /// `sorted` has all experts, the hottest first; each has `counts` replicas, one at least. For `num_gifts`: no more of
  /// the experts with one replica can come into it.
  ReplicaGiver(std::span<const Item> sorted, std::vector<std::int32_t>& counts, std::size_t num_gifts)
      : sorted_(sorted), counts_(&counts) {
    std::size_t num_single = 0;
    for (std::size_t place = 0; place < sorted.size() && num_single <= num_gifts; ++place) {
      heap_.push_back(candidate(place));
      num_single += count_of(sorted[place].expert) == 1 ? 1 : 0;
    }
    std::make_heap(heap_.begin(), heap_.end(), cooler);
  }

  [[nodiscard]] bool is_empty() const { return heap_.empty(); }
  /// Gives the hottest one more; returns the expert.
  std::int32_t give() {
    std::pop_heap(heap_.begin(), heap_.end(), cooler);
    const std::size_t place = heap_.back().place;
    const std::int32_t expert = sorted_[place].expert;
    ++count_of(expert);
    heap_.back() = candidate(place);
    std::push_heap(heap_.begin(), heap_.end(), cooler);
    return expert;
  }
  /// Drops the hottest: it gets no more.
  void drop() {
    std::pop_heap(heap_.begin(), heap_.end(), cooler);
    heap_.pop_back();
  }
  [[nodiscard]] std::int32_t hottest() const { return sorted_[heap_.front().place].expert; }

 private:
  struct Candidate {
    double load = 0.0;  // per replica
    std::size_t place = 0;
  };
  static bool cooler(const Candidate& a, const Candidate& b) {
    return a.load != b.load ? a.load < b.load : a.place > b.place;
  }
  [[nodiscard]] std::int32_t& count_of(std::int32_t expert) const {
    return (*counts_)[static_cast<std::size_t>(expert)];
  }
  [[nodiscard]] Candidate candidate(std::size_t place) const {
    const Item& item = sorted_[place];
    return {.load = static_cast<double>(item.load) / count_of(item.expert), .place = place};
  }

  std::span<const Item> sorted_;
  std::vector<std::int32_t>* counts_;
  std::vector<Candidate> heap_;
};

/// Ranks as they fill.
class Bins {
 public:
  explicit Bins(std::span<const std::int32_t> slots_of_rank)
      : table_(SlotTable::empty(slots_of_rank)), num_used_(slots_of_rank.size(), 0), load_(slots_of_rank.size(), 0) {
    limit_.assign(slots_of_rank.begin(), slots_of_rank.end());
    key_.resize(slots_of_rank.size());
    open_all();
  }

  /// Experts that a rank may take.
  void limit(std::size_t rank, std::int32_t num_experts) {
    limit_[rank] = num_experts;
    key_[rank] = key_of(rank);
  }

  /// Puts replicas of one expert to the least loaded ranks that may take it, and returns how many found a place.
  std::int32_t add(const Item& item, std::int32_t num_replicas) {
    used_.clear();
    for (std::int32_t replica = 0; replica < num_replicas; ++replica) {
      std::size_t rank = 0;
      // A plain loop: without a branch for every rank, unlike min_element.
      std::uint64_t least = kClosed;
      for (const std::uint64_t key : key_) least = key < least ? key : least;
      if (least != kClosed) {
        rank = static_cast<std::size_t>(least & ((std::uint64_t{1} << kIdBits) - 1));
        put(rank, item.expert);
      } else if (!make_room(item.expert, rank)) {
        break;
      }
      load_[rank] += item.load;
      key_[rank] = kClosed;  // until all replicas are placed
      used_.push_back(rank);
    }
    for (const std::size_t rank : used_) key_[rank] = key_of(rank);
    return static_cast<std::int32_t>(used_.size());
  }

  void put(std::size_t rank, std::int32_t expert) {
    table_.expert[static_cast<std::size_t>(table_.begin[rank] + num_used_[rank]++)] = expert;
  }
  [[nodiscard]] bool has_room(std::size_t rank) const { return num_free(rank) > 0; }
  [[nodiscard]] std::int32_t num_free(std::size_t rank) const {
    return table_.begin[rank + 1] - table_.begin[rank] - num_used_[rank];
  }
  [[nodiscard]] bool holds(std::size_t rank, std::int32_t expert) const {
    const auto first = table_.expert.begin() + table_.begin[rank];
    return std::find(first, first + num_used_[rank], expert) != first + num_used_[rank];
  }
  [[nodiscard]] std::int64_t load(std::size_t rank) const { return load_[rank]; }
  [[nodiscard]] std::int32_t num_used(std::size_t rank) const { return num_used_[rank]; }
  [[nodiscard]] std::size_t num_ranks() const { return load_.size(); }
  [[nodiscard]] const SlotTable& table() const { return table_; }
  [[nodiscard]] SlotTable take() { return std::move(table_); }

 private:
  static constexpr std::uint64_t kClosed = std::numeric_limits<std::uint64_t>::max();

  [[nodiscard]] std::uint64_t key_of(std::size_t rank) const {
    if (num_used_[rank] >= limit_[rank]) return kClosed;
    return (static_cast<std::uint64_t>(load_[rank]) << kIdBits) | rank;
  }
  void open_all() {
    for (std::size_t rank = 0; rank < key_.size(); ++rank) key_[rank] = key_of(rank);
  }

  /// All ranks with room hold the expert. A rank without gives one of its experts to one of them and takes this one.
  [[nodiscard]] bool make_room(std::int32_t wanted, std::size_t& found) {
    for (std::size_t roomy = 0; roomy < num_ranks(); ++roomy) {
      if (!has_room(roomy)) continue;
      for (std::size_t full = 0; full < num_ranks(); ++full) {
        if (holds(full, wanted)) continue;
        for (std::int32_t used = 0; used < num_used_[full]; ++used) {
          std::int32_t& expert = table_.expert[static_cast<std::size_t>(table_.begin[full] + used)];
          if (holds(roomy, expert)) continue;
          put(roomy, expert);
          key_[roomy] = key_of(roomy);
          expert = wanted;
          found = full;
          return true;
        }
      }
    }
    return false;
  }

  SlotTable table_;
  std::vector<std::int32_t> num_used_;  // [num_ranks]; slots, from the first
  std::vector<std::int32_t> limit_;
  std::vector<std::int64_t> load_;
  std::vector<std::uint64_t> key_;  // load and rank, or kClosed
  std::vector<std::size_t> used_;
};

/// Fills ranks below the mean from ranks above it.
class Aliases {
 public:
  Aliases(Bins& bins, std::span<const std::int64_t> loads) : bins_(&bins), share_(bins.table().expert.size(), 0) {
    std::int64_t total = 0;
    std::int64_t num_holders = 0;
    const SlotTable& table = bins.table();
    for (std::size_t rank = 0; rank < bins.num_ranks(); ++rank) {
      load_.push_back(bins.load(rank));
      total += load_.back();
      num_holders += table.begin[rank] == table.begin[rank + 1] ? 0 : 1;
      for (std::int32_t used = 0; used < bins.num_used(rank); ++used) {
        const auto slot = static_cast<std::size_t>(table.begin[rank] + used);
        share_[slot] = loads[static_cast<std::size_t>(table.expert[slot])];
      }
    }
    mean_ = (total + num_holders - 1) / std::max<std::int64_t>(num_holders, 1);
  }

  void fill() {
    std::vector<std::size_t> short_ranks;
    for (std::size_t rank = 0; rank < load_.size(); ++rank) {
      if (load_[rank] < mean_ && bins_->has_room(rank)) short_ranks.push_back(rank);
    }
    std::sort(short_ranks.begin(), short_ranks.end(),
              [this](std::size_t a, std::size_t b) { return load_[a] != load_[b] ? load_[a] < load_[b] : a < b; });
    for (std::size_t next = 0; next < short_ranks.size(); ++next) {
      const std::size_t to = short_ranks[next];
      const auto from = static_cast<std::size_t>(std::max_element(load_.begin(), load_.end()) - load_.begin());
      if (load_[from] <= mean_) break;
      give(from, to);
      // One that gave more than it had too much gets a replica itself: once, as every rank.
      if (load_[from] < mean_ && bins_->has_room(from)) short_ranks.push_back(from);
    }
  }

  [[nodiscard]] std::vector<std::int64_t> take() { return std::move(share_); }

 private:
  void give(std::size_t from, std::size_t to) {
    const SlotTable& table = bins_->table();
    std::size_t best = table.expert.size();
    for (std::int32_t used = 0; used < bins_->num_used(from); ++used) {
      const auto slot = static_cast<std::size_t>(table.begin[from] + used);
      if (bins_->holds(to, table.expert[slot])) continue;
      if (best == table.expert.size() || share_[slot] > share_[best]) best = slot;
    }
    if (best == table.expert.size()) return;
    const std::int64_t amount = std::min(mean_ - load_[to], share_[best]);
    if (amount <= 0) return;
    const auto target = static_cast<std::size_t>(table.begin[to] + bins_->num_used(to));
    bins_->put(to, table.expert[best]);
    share_[target] = amount;
    share_[best] -= amount;
    load_[to] += amount;
    load_[from] -= amount;
  }

  Bins* bins_;
  std::vector<std::int64_t> share_;
  std::vector<std::int64_t> load_;
  std::int64_t mean_ = 0;
};

std::int32_t num_slots_of(std::span<const std::int32_t> slots_of_rank) {
  return std::accumulate(slots_of_rank.begin(), slots_of_rank.end(), std::int32_t{0});
}

/// Leaves room for replicas: of the slots to spare, every rank keeps its part, from the emptiest rank down to where all
/// experts just fit.
void reserve_room(Bins& bins, std::span<const std::int32_t> slots_of_rank, std::int32_t num_experts) {
  std::int32_t num_spare = num_slots_of(slots_of_rank) - num_experts;
  std::vector<std::int32_t> limits(slots_of_rank.begin(), slots_of_rank.end());
  while (num_spare > 0) {
    bool any = false;
    for (std::size_t rank = 0; rank < limits.size() && num_spare > 0; ++rank) {
      if (limits[rank] < 2) continue;
      --limits[rank];
      --num_spare;
      any = true;
    }
    if (!any) break;
  }
  for (std::size_t rank = 0; rank < limits.size(); ++rank) bins.limit(rank, limits[rank]);
}

/// Replicas without load for the slots that are left.
void fill_rest(Bins& bins, std::span<const Item> sorted) {
  std::vector<std::size_t> roomy;
  std::size_t num_free = 0;
  for (std::size_t rank = 0; rank < bins.num_ranks(); ++rank) {
    if (!bins.has_room(rank)) continue;
    roomy.push_back(rank);
    num_free += static_cast<std::size_t>(bins.num_free(rank));
  }
  if (roomy.empty()) return;
  std::vector<std::int32_t> counts = bins.table().replica_counts(static_cast<std::int32_t>(sorted.size()));
  // An expert that is on all ranks with room is passed over, and others take its place: then all are candidates.
  for (const std::size_t num_gifts : {num_free, sorted.size()}) {
    ReplicaGiver giver(sorted, counts, num_gifts);
    while (!roomy.empty() && !giver.is_empty()) {
      const std::int32_t expert = giver.hottest();
      const auto takes = [&](std::size_t rank) { return !bins.holds(rank, expert); };
      const auto rank = std::find_if(roomy.begin(), roomy.end(), takes);
      if (rank == roomy.end()) {
        giver.drop();
        continue;
      }
      giver.give();
      bins.put(*rank, expert);
      // The next replica goes to another rank.
      const std::size_t used = *rank;
      roomy.erase(rank);
      if (bins.has_room(used)) roomy.push_back(used);
    }
  }
}

}  // namespace

SlotTable pack_even(std::span<const std::int64_t> loads, std::span<const std::int32_t> slots_of_rank) {
  std::vector<Item> items = sort_by_load(loads);
  const auto num_holders = static_cast<std::int32_t>(
      std::count_if(slots_of_rank.begin(), slots_of_rank.end(), [](std::int32_t slots) { return slots > 0; }));
  std::vector<std::int32_t> counts(loads.size(), 1);
  std::int32_t num_spare = num_slots_of(slots_of_rank) - static_cast<std::int32_t>(loads.size());
  for (ReplicaGiver giver(items, counts, items.size()); num_spare > 0 && !giver.is_empty();) {
    if (counts[static_cast<std::size_t>(giver.hottest())] >= num_holders) {
      giver.drop();
      continue;
    }
    giver.give();
    --num_spare;
  }
  for (Item& item : items) item.load /= counts[static_cast<std::size_t>(item.expert)];
  std::sort(items.begin(), items.end(), hotter);
  Bins bins(slots_of_rank);
  for (const Item& item : items) bins.add(item, counts[static_cast<std::size_t>(item.expert)]);
  return bins.take();
}

SharedPack pack_shared(std::span<const std::int64_t> loads, std::span<const std::int32_t> slots_of_rank) {
  const std::vector<Item> items = sort_by_load(loads);
  const auto num_experts = static_cast<std::int32_t>(loads.size());
  Bins bins(slots_of_rank);
  reserve_room(bins, slots_of_rank, num_experts);
  for (const Item& item : items) bins.add(item, 1);
  Aliases aliases(bins, loads);
  aliases.fill();
  fill_rest(bins, items);
  return {.table = bins.take(), .share = aliases.take()};
}

}  // namespace epistle::balance
