// A small scenario of three ranks, of which one makes mistakes.
#pragma once

#include "support/scenario.hpp"

namespace epistle::testing {

inline constexpr int kBadRank = 1;

inline Scenario small_scenario() {
  Scenario scenario;
  scenario.config.hidden = 32;
  scenario.config.num_experts = 7;
  scenario.config.top_k = 2;
  scenario.config.max_tokens = 12;
  scenario.tokens_per_rank = {5, 8, 12};
  scenario.missing_probability = 0.0;
  return scenario;
}

}  // namespace epistle::testing
