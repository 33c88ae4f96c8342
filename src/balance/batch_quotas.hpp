// Quotas for one batch whose counts are known: whole tokens, as even over the ranks as the placement allows.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "balance/share_state.hpp"
#include "balance/slot_table.hpp"

namespace epistle::balance {

/// Made once for a placement; its memory is used again by every batch. Not thread safe.
class BatchQuotas {
 public:
  BatchQuotas(const SlotTable& table, std::int32_t num_experts) : state_(table, num_experts) {}

  /// Shares the tokens of every expert out to its slots. Every rank comes as near to the mean as the placement allows.
  void solve(std::span<const std::int64_t> tokens_per_expert);

  /// For activated experts: each that has tokens is served by one replica whole, and ranks have as equal numbers of
  /// them as the placement allows. A slot's quota is 1 where it serves its expert.
  void solve_activated(std::span<const std::int64_t> tokens_per_expert);

  /// [num_slots]; tokens that a slot takes.
  [[nodiscard]] std::span<const std::int64_t> quotas() const noexcept { return state_.shares(); }
  [[nodiscard]] std::span<const std::int64_t> rank_loads() const noexcept { return state_.rank_loads(); }
  /// Mean over largest load of the ranks that have slots. No quotas are better for this placement.
  [[nodiscard]] double balancedness() const noexcept;

 private:
  ShareState state_;
  std::vector<std::int64_t> active_;
};

}  // namespace epistle::balance
