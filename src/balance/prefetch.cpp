#include "balance/prefetch.hpp"

#include <algorithm>
#include <utility>

#include "balance/local_search.hpp"

namespace epistle::balance {
namespace {

constexpr std::size_t to_idx(std::int32_t value) noexcept { return static_cast<std::size_t>(value); }

}  // namespace

PrefetchPlanner::PrefetchPlanner(const SlotTable& table, std::int32_t num_experts, const PrefetchRules& rules)
    : rules_(rules), state_(table, num_experts) {
  wide_.begin.push_back(0);
  for (std::int32_t rank = 0; rank < table.num_ranks(); ++rank) {
    const auto held = table.experts_of(rank);
    wide_.expert.insert(wide_.expert.end(), held.begin(), held.end());
    // A rank that has no slots takes no part.
    const std::int32_t spare = held.empty() ? 0 : rules.max_per_rank;
    wide_.expert.insert(wide_.expert.end(), to_idx(spare), kEmptySlot);
    wide_.begin.push_back(wide_.num_slots());
  }
  rank_of_ = wide_.rank_of_slot();
  quotas_.resize(wide_.expert.size());
  rank_loads_.resize(to_idx(table.num_ranks()));
  num_fetched_.assign(to_idx(table.num_ranks()), 0);
  fetches_.reserve(to_idx(table.num_ranks()) * to_idx(rules.max_per_rank));
}

void PrefetchPlanner::solve(std::span<const std::int64_t> tokens_per_expert) {
  forget_fetches();
  state_.spread(tokens_per_expert);
  const std::int64_t mean = state_.mean_load();
  const auto goal = std::max(mean, static_cast<std::int64_t>(static_cast<double>(mean) * (1.0 + rules_.tolerance)));
  state_.balance(goal);
  take_shares();
  if (rules_.max_per_rank > 0) give_away(goal, mean);
  is_even_ = *std::max_element(rank_loads_.begin(), rank_loads_.end()) <= goal;
  if (!is_even_ && rules_.max_per_rank > 0) search_on(tokens_per_expert, goal);
}

void PrefetchPlanner::forget_fetches() {
  for (const Fetch& fetch : fetches_) wide_.expert[to_idx(fetch.slot)] = kEmptySlot;
  fetches_.clear();
  std::fill(num_fetched_.begin(), num_fetched_.end(), 0);
}

void PrefetchPlanner::take_shares() {
  std::fill(quotas_.begin(), quotas_.end(), std::int64_t{0});
  const auto shares = state_.shares();
  for (std::int32_t rank = 0; rank < state_.num_ranks(); ++rank) {
    std::copy(shares.begin() + state_.slot_begin(rank), shares.begin() + state_.slot_end(rank),
              quotas_.begin() + wide_.begin[to_idx(rank)]);
  }
  std::copy(state_.rank_loads().begin(), state_.rank_loads().end(), rank_loads_.begin());
}

void PrefetchPlanner::sort_ranks(std::int64_t goal, std::int64_t mean) {
  givers_.clear();
  takers_.clear();
  for (std::int32_t rank = 0; rank < state_.num_ranks(); ++rank) {
    const std::int64_t load = rank_loads_[to_idx(rank)];
    if (load > goal) givers_.push_back(rank);
    if (load < mean && wide_.begin[to_idx(rank)] != wide_.begin[to_idx(rank) + 1]) takers_.push_back(rank);
  }
  const auto fuller = [this](std::int32_t a, std::int32_t b) {
    return std::pair(rank_loads_[to_idx(a)], b) > std::pair(rank_loads_[to_idx(b)], a);
  };
  std::sort(givers_.begin(), givers_.end(), [&](std::int32_t a, std::int32_t b) { return fuller(b, a); });
  std::sort(takers_.begin(), takers_.end(), fuller);
}

bool PrefetchPlanner::holds(std::int32_t rank, std::int32_t expert) const {
  const auto held = wide_.experts_of(rank);
  return std::find(held.begin(), held.end(), expert) != held.end();
}

/// Of the slots of `from` the one with the least share that is enough, else that with most; -1 = none can be given.
std::int32_t PrefetchPlanner::choose_slot(std::int32_t from, std::int32_t to, std::int64_t wanted) const {
  std::int32_t best = -1;
  for (std::int32_t slot = wide_.begin[to_idx(from)]; slot < wide_.begin[to_idx(from) + 1]; ++slot) {
    const std::int64_t share = quotas_[to_idx(slot)];
    if (share <= 0) continue;
    if (best >= 0) {
      const std::int64_t so_far = quotas_[to_idx(best)];
      if (so_far >= wanted ? share < wanted || share >= so_far : share <= so_far) continue;
    }
    if (!holds(to, wide_.expert[to_idx(slot)])) best = slot;
  }
  return best;
}

void PrefetchPlanner::give_away(std::int64_t goal, std::int64_t mean) {
  sort_ranks(goal, mean);
  while (!givers_.empty() && !takers_.empty()) {
    const std::int32_t from = givers_.back();
    const std::int32_t to = takers_.back();
    const std::int64_t room = mean - rank_loads_[to_idx(to)];
    const std::int64_t wanted = std::min(rank_loads_[to_idx(from)] - mean, room);
    const std::int32_t slot = choose_slot(from, to, wanted);
    if (slot < 0) {
      // The rank has all that this one could give: another one may still need it.
      takers_.pop_back();
      continue;
    }
    const std::int64_t moved = std::min(quotas_[to_idx(slot)], wanted);
    const std::int32_t expert = wide_.expert[to_idx(slot)];
    const std::int32_t spare =
        state_.slot_end(to) - state_.slot_begin(to) + wide_.begin[to_idx(to)] + num_fetched_[to_idx(to)]++;
    wide_.expert[to_idx(spare)] = expert;
    fetches_.push_back({.rank = to, .expert = expert, .slot = spare});
    quotas_[to_idx(slot)] -= moved;
    quotas_[to_idx(spare)] = moved;
    rank_loads_[to_idx(from)] -= moved;
    rank_loads_[to_idx(to)] += moved;
    if (rank_loads_[to_idx(from)] <= goal) givers_.pop_back();
    if (rank_loads_[to_idx(to)] >= mean || num_fetched_[to_idx(to)] == rules_.max_per_rank) takers_.pop_back();
  }
}

/// Where spare slots ran out: the same with all shares free, from the placement as it is.
void PrefetchPlanner::search_on(std::span<const std::int64_t> tokens_per_expert, std::int64_t goal) {
  const std::int64_t reached = *std::max_element(rank_loads_.begin(), rank_loads_.end());
  SlotTable bare = wide_;
  for (const Fetch& fetch : fetches_) bare.expert[to_idx(fetch.slot)] = kEmptySlot;
  ShareState state(bare, state_.num_experts());
  state.spread(tokens_per_expert);
  state.balance(0);
  const SearchRules search{
      .goal = goal, .max_steps = rules_.max_per_rank * state_.num_ranks(), .only_empty_slots = true};
  LocalSearch(state, nullptr, search).run();
  if (state.max_load() >= reached) return;
  fetches_.clear();
  wide_ = state.table();
  for (std::size_t slot = 0; slot < wide_.expert.size(); ++slot) {
    if (wide_.expert[slot] == bare.expert[slot]) continue;
    fetches_.push_back({.rank = rank_of_[slot], .expert = wide_.expert[slot], .slot = static_cast<std::int32_t>(slot)});
  }
  std::copy(state.shares().begin(), state.shares().end(), quotas_.begin());
  std::copy(state.rank_loads().begin(), state.rank_loads().end(), rank_loads_.begin());
  is_even_ = state.max_load() <= goal;
}

}  // namespace epistle::balance
