// How the load of experts is shared out among their replicas so that the most loaded rank has as little as the
// placement allows. In whole units (tokens, or loads scaled to integers), so that every machine comes to the same
// shares.
//
// Load moves from rank to rank along replicas of one expert. While a rank is above the target, load is pushed along a
// path of such replicas to a rank below it. Where no path leads out of the ranks that are too full, these hold nothing
// that could be elsewhere: their mean is a lower bound of any split of this placement (a minimum cut), and becomes the
// target. So the result is exact.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "balance/slot_table.hpp"

namespace epistle::balance {

class ShareState {
 public:
  ShareState() = default;
  ShareState(const SlotTable& table, std::int32_t num_experts) { reset(table, num_experts); }

  /// Takes another placement; memory is used again. Shares are undefined until spread().
  void reset(const SlotTable& table, std::int32_t num_experts);

  /// Takes the loads of the experts and shares each out: the hottest first, to its least loaded ranks.
  void spread(std::span<const std::int64_t> loads);

  /// Takes loads with shares that were found elsewhere.
  void take_shares(std::span<const std::int64_t> loads, std::span<const std::int64_t> shares);

  /// Lowers the largest rank load to `goal`, or as far as the placement allows, and returns what came of it: the
  /// largest load is at most that.
  std::int64_t balance(std::int64_t goal);

  /// Moves what can move from ranks above `goal` to ranks below it. Returns what is left above, summed over ranks: the
  /// least that this placement allows.
  std::int64_t drain(std::int64_t goal);
  /// After drain() left something: whether the rank is above the goal or gets load from one that is.
  [[nodiscard]] bool is_stuck(std::int32_t rank) const noexcept { return rank_seen_[index(rank)] == search_; }

  /// Brings every rank as near to the mean as the placement allows, the fullest first: what balance() does, then the
  /// same among the ranks that are not held up by those. Returns the least largest load.
  std::int64_t level();

  /// Makes a slot hold `expert` (kEmptySlot: nothing). What other slots have is shared out again where it must be.
  void set_slot(std::int32_t slot, std::int32_t expert);

  struct Shares {
    std::vector<std::int64_t> share;
    std::vector<std::int64_t> rank_load;
  };
  void save(Shares& saved) const;
  /// Takes back shares of this very placement.
  void restore(const Shares& saved);

  [[nodiscard]] std::int32_t num_ranks() const noexcept { return static_cast<std::int32_t>(begin_.size()) - 1; }
  [[nodiscard]] std::int32_t num_experts() const noexcept { return static_cast<std::int32_t>(head_.size()); }
  [[nodiscard]] std::int32_t slot_begin(std::int32_t rank) const noexcept { return begin_[index(rank)]; }
  [[nodiscard]] std::int32_t slot_end(std::int32_t rank) const noexcept { return begin_[index(rank) + 1]; }
  [[nodiscard]] std::int32_t expert_at(std::int32_t slot) const noexcept { return expert_[index(slot)]; }
  [[nodiscard]] std::int32_t rank_at(std::int32_t slot) const noexcept { return rank_of_[index(slot)]; }
  [[nodiscard]] std::int32_t first_slot(std::int32_t expert) const noexcept { return head_[index(expert)]; }
  /// The next slot of the same expert, or -1.
  [[nodiscard]] std::int32_t next_slot(std::int32_t slot) const noexcept { return next_[index(slot)]; }
  [[nodiscard]] std::int32_t num_replicas(std::int32_t expert) const noexcept { return count_[index(expert)]; }
  [[nodiscard]] std::int64_t share(std::int32_t slot) const noexcept { return share_[index(slot)]; }
  [[nodiscard]] std::int64_t load(std::int32_t expert) const noexcept { return load_[index(expert)]; }
  [[nodiscard]] std::int64_t rank_load(std::int32_t rank) const noexcept { return rank_load_[index(rank)]; }
  [[nodiscard]] bool is_on(std::int32_t expert, std::int32_t rank) const noexcept;
  [[nodiscard]] std::int64_t total() const noexcept { return total_; }
  [[nodiscard]] std::int64_t max_load() const noexcept;
  /// The mean load of the ranks that have slots, rounded up: no largest load is below it.
  [[nodiscard]] std::int64_t mean_load() const noexcept;
  [[nodiscard]] std::span<const std::int64_t> shares() const noexcept { return share_; }
  [[nodiscard]] std::span<const std::int64_t> rank_loads() const noexcept { return rank_load_; }
  [[nodiscard]] SlotTable table() const { return {.begin = begin_, .expert = expert_}; }

 private:
  [[nodiscard]] static constexpr std::size_t index(std::int32_t value) noexcept {
    return static_cast<std::size_t>(value);
  }
  [[nodiscard]] bool has_slots(std::int32_t rank) const noexcept { return slot_begin(rank) != slot_end(rank); }
  void link(std::int32_t slot, std::int32_t expert);
  void unlink(std::int32_t slot);
  void withdraw(std::int32_t expert);
  void fill(std::int32_t expert);
  enum class Step : std::int32_t { kDone, kMoved, kStuck };
  Step push(std::int64_t target);
  std::int64_t move_along(std::int32_t rank, std::int64_t target);
  struct Level {
    std::int64_t target = 0;
    bool is_cut = false;  // some ranks cannot have less
  };
  Level settle(std::int64_t target);
  [[nodiscard]] std::int64_t mean_of_reached() const noexcept;
  [[nodiscard]] std::int64_t mean_of_free() const noexcept;

  std::vector<std::int32_t> begin_;    // [num_ranks + 1]
  std::vector<std::int32_t> expert_;   // [num_slots]
  std::vector<std::int32_t> rank_of_;  // [num_slots]
  std::vector<std::int32_t> next_;     // [num_slots]; slots of an expert are a list
  std::vector<std::int32_t> head_;     // [num_experts]
  std::vector<std::int32_t> count_;    // [num_experts]
  std::vector<std::int64_t> load_;     // [num_experts]
  std::vector<std::int64_t> share_;    // [num_slots]
  std::vector<std::int64_t> rank_load_;
  std::int64_t total_ = 0;

  // Of the search for paths.
  struct Hop {
    std::int32_t out_slot = -1;  // of the rank that it leads from; -1 = the path begins here
    std::int32_t in_slot = -1;
  };
  std::vector<Hop> hop_;                  // [num_ranks]
  std::vector<std::uint32_t> rank_seen_;  // [num_ranks]; the search that reached it
  std::vector<std::uint32_t> expert_seen_;
  std::vector<char> is_frozen_;  // [num_ranks]; takes no part
  std::vector<std::int32_t> queue_;
  std::uint32_t search_ = 0;
  std::vector<std::int32_t> order_;  // scratch of spread() and fill()
};

}  // namespace epistle::balance
