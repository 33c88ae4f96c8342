#include "balance/local_search.hpp"

#include <algorithm>

namespace epistle::balance {
namespace {

// A change that undoes an earlier copy is worth more than one that needs another, and must not divide by zero.
constexpr double kFreeCost = 0.25;

}  // namespace

std::int64_t LocalSearch::run() {
  const std::int64_t goal = std::max(rules_.goal, state_->mean_load());
  if (state_->max_load() <= goal) return state_->max_load();
  if (!search(goal)) {
    // Not all of it can be had: the same for goals between, the lowest first, as long as one of them is reached.
    std::int64_t reached = state_->balance(goal);
    constexpr std::int64_t kParts = 8;
    for (std::int64_t part = 1; part < kParts && num_steps_ < rules_.max_steps; ++part) {
      const std::int64_t between = goal + (reached - goal) * part / kParts;
      if (search(between)) break;
      reached = std::min(reached, state_->balance(goal));
    }
  }
  return state_->balance(goal);
}

/// True where the goal is reached.
bool LocalSearch::search(std::int64_t goal) {
  for (;;) {
    const std::int64_t above = state_->drain(goal);
    if (above == 0) return true;
    if (num_steps_ >= rules_.max_steps || !step(goal, above)) return false;
    ++num_steps_;
  }
}

std::int64_t LocalSearch::cost(const Change& change) const {
  if (copies_ == nullptr) return 1;
  const std::int32_t old = state_->expert_at(change.slot);
  std::int64_t copies = copies_->cost(state_->rank_at(change.slot), old, change.expert);
  if (change.other_slot >= 0) copies += copies_->cost(state_->rank_at(change.other_slot), change.expert, old);
  return copies;
}

void LocalSearch::offer(Change change) {
  if (change.gain < rules_.min_gain_per_copy) return;
  if (copies_ != nullptr) {
    if (!copies_->allows(state_->rank_at(change.slot), change.expert)) return;
    if (change.other_slot >= 0 &&
        !copies_->allows(state_->rank_at(change.other_slot), state_->expert_at(change.slot))) {
      return;
    }
  }
  const auto copies = static_cast<double>(cost(change));
  change.value = static_cast<double>(change.gain) / std::max(copies, kFreeCost);
  const auto better = [](const Change& a, const Change& b) { return a.value > b.value; };
  const auto max_candidates = static_cast<std::size_t>(rules_.num_trials);
  if (candidates_.size() >= max_candidates && !better(change, candidates_.back())) return;
  candidates_.insert(std::upper_bound(candidates_.begin(), candidates_.end(), change, better), change);
  if (candidates_.size() > max_candidates) candidates_.pop_back();
}

/// What ranks that are not too full cannot take of the share of `slot`, were it given up.
std::int64_t LocalSearch::loss_without(std::int32_t slot, std::int64_t goal) const {
  std::int64_t left = state_->share(slot);
  const std::int32_t expert = state_->expert_at(slot);
  for (std::int32_t other = state_->first_slot(expert); other >= 0 && left > 0; other = state_->next_slot(other)) {
    const std::int32_t rank = state_->rank_at(other);
    if (other != slot && !state_->is_stuck(rank)) left -= std::max<std::int64_t>(goal - state_->rank_load(rank), 0);
  }
  return std::max<std::int64_t>(left, 0);
}

/// The slot of `rank` that can best be given up: empty, or a replica whose share others can take. -1 = none.
LocalSearch::Victim LocalSearch::find_victim(std::int32_t rank, std::int64_t goal) const {
  Victim best;
  for (std::int32_t slot = state_->slot_begin(rank); slot < state_->slot_end(rank); ++slot) {
    const std::int32_t expert = state_->expert_at(slot);
    if (expert == kEmptySlot) return {.slot = slot, .loss = 0, .share = 0};
    if (rules_.only_empty_slots || state_->num_replicas(expert) < 2) continue;
    const Victim victim{.slot = slot, .loss = loss_without(slot, goal), .share = state_->share(slot)};
    if (best.slot < 0 || victim.loss < best.loss || (victim.loss == best.loss && victim.share < best.share)) {
      best = victim;
    }
  }
  return best;
}

void LocalSearch::collect_replicas(std::int32_t to, std::int64_t goal) {
  const Victim victim = find_victim(to, goal);
  if (victim.slot < 0) return;
  const std::int64_t room = goal - state_->rank_load(to) + victim.share;
  for (const std::int32_t expert : stuck_experts_) {
    const std::int64_t gain = std::min(room, stuck_share_[static_cast<std::size_t>(expert)]) - victim.loss;
    if (gain <= 0 || expert == state_->expert_at(victim.slot) || state_->is_on(expert, to)) continue;
    offer({.slot = victim.slot, .expert = expert, .other_slot = -1, .gain = gain, .value = 0.0});
  }
}

void LocalSearch::collect_swaps(std::int32_t to, std::int64_t goal) {
  const std::int64_t room = goal - state_->rank_load(to);
  for (std::int32_t slot = state_->slot_begin(to); slot < state_->slot_end(to); ++slot) {
    const std::int32_t light = state_->expert_at(slot);
    if (light == kEmptySlot) continue;
    for (const std::int32_t stuck : stuck_slots_) {
      const std::int32_t heavy = state_->expert_at(stuck);
      const std::int64_t difference = state_->share(stuck) - state_->share(slot);
      // What is too much for the other rank has to go back.
      const std::int64_t wanted = std::max<std::int64_t>(state_->rank_load(state_->rank_at(stuck)) - goal, 1);
      const std::int64_t gain = std::min({difference, wanted, 2 * room - difference});
      if (gain <= 0 || heavy == light) continue;
      if (!candidates_.empty() && candidates_.size() >= static_cast<std::size_t>(rules_.num_trials) &&
          static_cast<double>(gain) / kFreeCost <= candidates_.back().value) {
        continue;
      }
      if (state_->is_on(heavy, to) || state_->is_on(light, state_->rank_at(stuck))) continue;
      offer({.slot = slot, .expert = heavy, .other_slot = stuck, .gain = gain, .value = 0.0});
    }
  }
}

void LocalSearch::collect(std::int64_t goal) {
  candidates_.clear();
  stuck_slots_.clear();
  for (const std::int32_t expert : stuck_experts_) stuck_share_[static_cast<std::size_t>(expert)] = 0;
  stuck_experts_.clear();
  stuck_share_.resize(static_cast<std::size_t>(state_->num_experts()), 0);
  for (std::int32_t rank = 0; rank < state_->num_ranks(); ++rank) {
    if (!state_->is_stuck(rank)) continue;
    for (std::int32_t slot = state_->slot_begin(rank); slot < state_->slot_end(rank); ++slot) {
      const std::int32_t expert = state_->expert_at(slot);
      if (expert == kEmptySlot || state_->share(slot) == 0) continue;
      stuck_slots_.push_back(slot);
      std::int64_t& share = stuck_share_[static_cast<std::size_t>(expert)];
      if (share == 0) stuck_experts_.push_back(expert);
      // A rank at the goal only passes on what others have too much.
      const std::int64_t too_much = state_->rank_load(rank) - goal;
      share += std::max<std::int64_t>(std::min(state_->share(slot), too_much), 1);
    }
  }
  for (std::int32_t rank = 0; rank < state_->num_ranks(); ++rank) {
    const std::int64_t room = goal - state_->rank_load(rank);
    if (room <= 0 || state_->is_stuck(rank)) continue;
    collect_replicas(rank, goal);
    if (!rules_.only_empty_slots) collect_swaps(rank, goal);
  }
}

void LocalSearch::make(const Change& change) {
  const std::int32_t old = state_->expert_at(change.slot);
  if (change.other_slot >= 0) state_->set_slot(change.other_slot, kEmptySlot);
  state_->set_slot(change.slot, change.expert);
  if (change.other_slot >= 0) state_->set_slot(change.other_slot, old);
}

void LocalSearch::unmake(const Change& change, std::int32_t old_expert) {
  if (change.other_slot >= 0) state_->set_slot(change.other_slot, kEmptySlot);
  state_->set_slot(change.slot, old_expert);
  if (change.other_slot >= 0) state_->set_slot(change.other_slot, change.expert);
  state_->restore(before_);
}

/// Makes the change that takes most from what is above the goal; false where none does.
bool LocalSearch::step(std::int64_t goal, std::int64_t above) {
  collect(goal);
  state_->save(before_);
  const Change* best = nullptr;
  double best_value = 0.0;
  for (const Change& change : candidates_) {
    const auto copies = static_cast<double>(cost(change));
    const double per = std::max(copies, kFreeCost);
    // None of the rest can do better than it expects.
    if (best != nullptr && best_value >= change.value) break;
    const std::int32_t old = state_->expert_at(change.slot);
    make(change);
    const std::int64_t gain = above - state_->drain(goal);
    unmake(change, old);
    const double value = static_cast<double>(gain) / per;
    if (gain <= 0 || value < static_cast<double>(rules_.min_gain_per_copy) || value <= best_value) continue;
    best = &change;
    best_value = value;
  }
  if (best == nullptr) return false;
  if (copies_ != nullptr) {
    const std::int32_t old = state_->expert_at(best->slot);
    copies_->apply(state_->rank_at(best->slot), old, best->expert);
    if (best->other_slot >= 0) copies_->apply(state_->rank_at(best->other_slot), best->expert, old);
  }
  make(*best);
  return true;
}

}  // namespace epistle::balance
