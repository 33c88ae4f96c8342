#include "balance/batch_quotas.hpp"

#include <algorithm>

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

}  // namespace epistle::balance
