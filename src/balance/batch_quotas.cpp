#include "balance/batch_quotas.hpp"

#include <algorithm>

#include "balance/local_search.hpp"

namespace epistle::balance {

void BatchQuotas::solve(std::span<const std::int64_t> tokens_per_expert) {
  state_.spread(tokens_per_expert);
  state_.balance(0);
}

void BatchQuotas::solve_activated(std::span<const std::int64_t> tokens_per_expert) {
  active_.resize(tokens_per_expert.size());
  std::transform(tokens_per_expert.begin(), tokens_per_expert.end(), active_.begin(),
                 [](std::int64_t tokens) -> std::int64_t { return tokens > 0 ? 1 : 0; });
  solve(active_);
}

double BatchQuotas::balancedness() const noexcept {
  std::int64_t num_holders = 0;
  for (std::int32_t rank = 0; rank < state_.num_ranks(); ++rank) {
    num_holders += state_.slot_begin(rank) != state_.slot_end(rank) ? 1 : 0;
  }
  const std::int64_t largest = state_.max_load();
  if (largest == 0 || num_holders == 0) return 1.0;
  return static_cast<double>(state_.total()) / static_cast<double>(num_holders) / static_cast<double>(largest);
}

Prefetch plan_prefetch(const SlotTable& table, std::span<const std::int64_t> tokens_per_expert,
                       const PrefetchRules& rules) {
  Prefetch prefetch;
  SlotTable& wide = prefetch.table;
  wide.begin.push_back(0);
  for (std::int32_t rank = 0; rank < table.num_ranks(); ++rank) {
    const auto held = table.experts_of(rank);
    wide.expert.insert(wide.expert.end(), held.begin(), held.end());
    wide.expert.insert(wide.expert.end(), static_cast<std::size_t>(rules.max_per_rank), kEmptySlot);
    wide.begin.push_back(wide.num_slots());
  }
  const auto num_experts = static_cast<std::int32_t>(tokens_per_expert.size());
  ShareState state(wide, num_experts);
  state.spread(tokens_per_expert);
  state.balance(0);
  const auto mean = static_cast<double>(state.mean_load());
  const SearchRules search{.goal = static_cast<std::int64_t>(mean * (1.0 + rules.tolerance)),
                           .max_steps = rules.max_per_rank * table.num_ranks(),
                           .only_empty_slots = true};
  LocalSearch(state, nullptr, search).run();
  const SlotTable before = wide;
  wide = state.table();
  const std::vector<std::int32_t> rank_of = wide.rank_of_slot();
  for (std::size_t slot = 0; slot < wide.expert.size(); ++slot) {
    if (wide.expert[slot] == before.expert[slot]) continue;
    prefetch.experts.push_back({.rank = rank_of[slot], .local_slot = wide.expert[slot]});
  }
  prefetch.quotas.assign(state.shares().begin(), state.shares().end());
  prefetch.rank_loads.assign(state.rank_loads().begin(), state.rank_loads().end());
  return prefetch;
}

}  // namespace epistle::balance
