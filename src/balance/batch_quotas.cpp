#include "balance/batch_quotas.hpp"

#include <algorithm>

#include "balance/balancedness.hpp"

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
  std::int32_t num_holders = 0;
  for (std::int32_t rank = 0; rank < state_.num_ranks(); ++rank) {
    num_holders += state_.slot_begin(rank) != state_.slot_end(rank) ? 1 : 0;
  }
  return balancedness_of(state_.rank_loads(), num_holders);
}

}  // namespace epistle::balance
