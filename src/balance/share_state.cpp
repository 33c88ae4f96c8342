#include "balance/share_state.hpp"

#include <algorithm>
#include <numeric>

namespace epistle::balance {
namespace {

std::int64_t divide_up(std::int64_t value, std::int64_t by) { return (value + by - 1) / by; }

}  // namespace

void ShareState::reset(const SlotTable& table, std::int32_t num_experts) {
  begin_ = table.begin;
  expert_ = table.expert;
  const std::size_t num_slots = expert_.size();
  const auto num_ranks = static_cast<std::size_t>(table.num_ranks());
  rank_of_.resize(num_slots);
  for (std::size_t rank = 0; rank < num_ranks; ++rank) {
    std::fill(rank_of_.begin() + begin_[rank], rank_of_.begin() + begin_[rank + 1], static_cast<std::int32_t>(rank));
  }
  next_.assign(num_slots, -1);
  head_.assign(index(num_experts), -1);
  count_.assign(index(num_experts), 0);
  // From behind, so that the list of an expert is in the order of its slots.
  for (auto slot = static_cast<std::int32_t>(num_slots) - 1; slot >= 0; --slot) {
    if (expert_at(slot) != kEmptySlot) link(slot, expert_at(slot));
  }
  load_.assign(index(num_experts), 0);
  share_.assign(num_slots, 0);
  rank_load_.assign(num_ranks, 0);
  hop_.resize(num_ranks);
  rank_seen_.assign(num_ranks, 0);
  expert_seen_.assign(index(num_experts), 0);
  is_frozen_.assign(num_ranks, 0);
  search_ = 0;
  total_ = 0;
}

void ShareState::link(std::int32_t slot, std::int32_t expert) {
  expert_[index(slot)] = expert;
  next_[index(slot)] = head_[index(expert)];
  head_[index(expert)] = slot;
  ++count_[index(expert)];
}

void ShareState::unlink(std::int32_t slot) {
  const std::int32_t expert = expert_at(slot);
  std::int32_t* at = &head_[index(expert)];
  while (*at != slot) at = &next_[index(*at)];
  *at = next_slot(slot);
  next_[index(slot)] = -1;
  expert_[index(slot)] = kEmptySlot;
  --count_[index(expert)];
}

void ShareState::spread(std::span<const std::int64_t> loads) {
  std::copy(loads.begin(), loads.end(), load_.begin());
  total_ = std::accumulate(loads.begin(), loads.end(), std::int64_t{0});
  std::fill(share_.begin(), share_.end(), 0);
  std::fill(rank_load_.begin(), rank_load_.end(), 0);
  order_.clear();
  for (std::int32_t expert = 0; expert < num_experts(); ++expert) {
    if (num_replicas(expert) > 1) {
      order_.push_back(expert);
    } else if (const std::int32_t slot = first_slot(expert); slot >= 0) {
      share_[index(slot)] = load(expert);
      rank_load_[index(rank_at(slot))] += load(expert);
    }
  }
  std::vector<std::int32_t> replicated;
  replicated.swap(order_);
  std::stable_sort(replicated.begin(), replicated.end(),
                   [this](std::int32_t a, std::int32_t b) { return load(a) > load(b); });
  for (const std::int32_t expert : replicated) fill(expert);
  replicated.swap(order_);
}

void ShareState::take_shares(std::span<const std::int64_t> loads, std::span<const std::int64_t> shares) {
  std::copy(loads.begin(), loads.end(), load_.begin());
  std::copy(shares.begin(), shares.end(), share_.begin());
  total_ = std::accumulate(loads.begin(), loads.end(), std::int64_t{0});
  std::fill(rank_load_.begin(), rank_load_.end(), 0);
  for (std::size_t slot = 0; slot < share_.size(); ++slot) rank_load_[index(rank_of_[slot])] += share_[slot];
}

void ShareState::withdraw(std::int32_t expert) {
  for (std::int32_t slot = first_slot(expert); slot >= 0; slot = next_slot(slot)) {
    rank_load_[index(rank_at(slot))] -= share(slot);
    share_[index(slot)] = 0;
  }
}

/// Pours an expert's load into its ranks, so that those that get some come to one level.
void ShareState::fill(std::int32_t expert) {
  order_.clear();
  for (std::int32_t slot = first_slot(expert); slot >= 0; slot = next_slot(slot)) {
    // Few replicas: insertion keeps them by the load of their ranks.
    auto at = order_.end();
    order_.push_back(slot);
    at = order_.end() - 1;
    while (at != order_.begin() && rank_load(rank_at(*(at - 1))) > rank_load(rank_at(slot))) {
      *at = *(at - 1);
      --at;
    }
    *at = slot;
  }
  std::int64_t below = load(expert);  // and the loads of the ranks that get some
  std::int64_t num_filled = 0;
  std::int64_t level = 0;
  for (const std::int32_t slot : order_) {
    const std::int64_t rank_has = rank_load(rank_at(slot));
    if (num_filled > 0 && level <= rank_has) break;
    below += rank_has;
    ++num_filled;
    level = divide_up(below, num_filled);
  }
  std::int64_t left = load(expert);
  for (const std::int32_t slot : order_) {
    const std::int64_t room = std::max<std::int64_t>(level - rank_load(rank_at(slot)), 0);
    const std::int64_t amount = std::min(room, left);
    share_[index(slot)] = amount;
    rank_load_[index(rank_at(slot))] += amount;
    left -= amount;
    if (left == 0) break;
  }
}

void ShareState::set_slot(std::int32_t slot, std::int32_t expert) {
  const std::int32_t old = expert_at(slot);
  if (old == expert) return;
  if (old != kEmptySlot) {
    withdraw(old);
    unlink(slot);
    fill(old);
  }
  if (expert != kEmptySlot) {
    withdraw(expert);
    link(slot, expert);
    fill(expert);
  }
}

/// Pushes load from the path's first rank to `rank`, as much as all on the way allow.
std::int64_t ShareState::move_along(std::int32_t rank, std::int64_t target) {
  std::int64_t amount = target - rank_load(rank);
  std::int32_t at = rank;
  while (hop_[index(at)].out_slot >= 0) {
    const std::int32_t out = hop_[index(at)].out_slot;
    amount = std::min(amount, share(out));
    at = rank_at(out);
  }
  amount = std::min(amount, rank_load(at) - target);
  if (amount <= 0) return 0;
  rank_load_[index(rank)] += amount;
  rank_load_[index(at)] -= amount;
  at = rank;
  while (hop_[index(at)].out_slot >= 0) {
    const Hop hop = hop_[index(at)];
    share_[index(hop.out_slot)] -= amount;
    share_[index(hop.in_slot)] += amount;
    at = rank_at(hop.out_slot);
  }
  return amount;
}

/// One breadth-first search from all ranks above `target`; load moves as soon as a rank below it is met. kStuck: the
/// ranks reached are those that load cannot leave.
ShareState::Step ShareState::push(std::int64_t target) {
  ++search_;
  queue_.clear();
  for (std::int32_t rank = 0; rank < num_ranks(); ++rank) {
    if (rank_load(rank) <= target || is_frozen_[index(rank)] != 0) continue;
    rank_seen_[index(rank)] = search_;
    hop_[index(rank)] = {};
    queue_.push_back(rank);
  }
  if (queue_.empty()) return Step::kDone;
  bool moved = false;
  for (std::size_t next = 0; next < queue_.size(); ++next) {
    const std::int32_t from = queue_[next];
    for (std::int32_t out = slot_begin(from); out < slot_end(from); ++out) {
      const std::int32_t expert = expert_at(out);
      if (expert == kEmptySlot || num_replicas(expert) < 2 || share(out) == 0) continue;
      if (expert_seen_[index(expert)] == search_) continue;  // its other ranks were reached
      expert_seen_[index(expert)] = search_;
      for (std::int32_t in = first_slot(expert); in >= 0; in = next_slot(in)) {
        const std::int32_t to = rank_at(in);
        if (rank_seen_[index(to)] == search_ || is_frozen_[index(to)] != 0) continue;
        rank_seen_[index(to)] = search_;
        hop_[index(to)] = {.out_slot = out, .in_slot = in};
        queue_.push_back(to);
        if (rank_load(to) < target && move_along(to, target) > 0) moved = true;
      }
    }
  }
  return moved ? Step::kMoved : Step::kStuck;
}

std::int64_t ShareState::mean_of_reached() const noexcept {
  std::int64_t sum = 0;
  for (const std::int32_t rank : queue_) sum += rank_load(rank);
  return divide_up(sum, static_cast<std::int64_t>(queue_.size()));
}

ShareState::Level ShareState::settle(std::int64_t target) {
  Level level{.target = target, .is_cut = false};
  for (Step step = push(level.target); step != Step::kDone; step = push(level.target)) {
    if (step == Step::kStuck) level = {.target = mean_of_reached(), .is_cut = true};
  }
  return level;
}

std::int64_t ShareState::balance(std::int64_t goal) { return settle(std::max(goal, mean_load())).target; }

std::int64_t ShareState::drain(std::int64_t goal) {
  Step step = Step::kMoved;
  while (step == Step::kMoved) step = push(goal);
  std::int64_t above = 0;
  for (const std::int32_t rank : queue_) above += std::max<std::int64_t>(rank_load(rank) - goal, 0);
  return above;
}

std::int64_t ShareState::mean_of_free() const noexcept {
  std::int64_t sum = 0;
  std::int64_t num_free = 0;
  for (std::int32_t rank = 0; rank < num_ranks(); ++rank) {
    if (is_frozen_[index(rank)] != 0 || !has_slots(rank)) continue;
    sum += rank_load(rank);
    ++num_free;
  }
  return num_free == 0 ? -1 : divide_up(sum, num_free);
}

std::int64_t ShareState::level() {
  std::int64_t largest = -1;
  for (std::int64_t mean = mean_of_free(); mean >= 0; mean = mean_of_free()) {
    const Level found = settle(mean);
    if (largest < 0) largest = found.target;
    if (!found.is_cut) {
      // All are at most at the mean rounded up; what is short of it gets the rest of those that are not.
      while (mean > 0 && push(mean - 1) == Step::kMoved) continue;
      break;
    }
    // Those that cannot have less are done. Units are whole, so one below the maximum is among them.
    if (drain(found.target - 1) == 0) break;
    for (const std::int32_t rank : queue_) is_frozen_[index(rank)] = 1;
  }
  std::fill(is_frozen_.begin(), is_frozen_.end(), 0);
  return std::max<std::int64_t>(largest, 0);
}

void ShareState::save(Shares& saved) const {
  saved.share = share_;
  saved.rank_load = rank_load_;
}

void ShareState::restore(const Shares& saved) {
  share_ = saved.share;
  rank_load_ = saved.rank_load;
}

bool ShareState::is_on(std::int32_t expert, std::int32_t rank) const noexcept {
  for (std::int32_t slot = first_slot(expert); slot >= 0; slot = next_slot(slot)) {
    if (rank_at(slot) == rank) return true;
  }
  return false;
}

std::int64_t ShareState::max_load() const noexcept {
  return rank_load_.empty() ? 0 : *std::max_element(rank_load_.begin(), rank_load_.end());
}

std::int64_t ShareState::mean_load() const noexcept {
  std::int64_t num_holders = 0;
  for (std::int32_t rank = 0; rank < num_ranks(); ++rank) num_holders += has_slots(rank) ? 1 : 0;
  return num_holders == 0 ? 0 : divide_up(total_, num_holders);
}

}  // namespace epistle::balance
