// What closed forms say of a step before any token is drawn, to be held against what is counted.
#pragma once

#include <optional>

#include "balance/slot_table.hpp"
#include "simulate/token_source.hpp"
#include "simulate/traffic.hpp"

namespace epistle::simulate {

struct ClosedForms {
  double distinct_ranks = 0;       ///< per token, on average
  double distinct_domains = 0;     ///< likewise
  double busiest_rank_factor = 1;  ///< of (token, expert), with what chance adds to so many tokens
};

/// None where experts have several slots, and where tokens are not drawn one expert after the other.
[[nodiscard]] std::optional<ClosedForms> closed_forms(const TokenSource& source, const TokenRules& rules,
                                                      const balance::SlotTable& placement, const RankGrid& grid);

}  // namespace epistle::simulate
