// A small scenario of three ranks, of which one makes mistakes.
#pragma once

#include <cstddef>
#include <functional>
#include <string>

#include <gtest/gtest.h>

#include "support/round_trip.hpp"
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

/// The bad rank has thrown `code`, the others kPeerRejected that names it, and everybody can go on. `also` looks at
/// what each rank has thrown.
inline void expect_rejected(const CallOutcomes& outcomes, ErrorCode code,
                            const std::function<void(std::size_t rank, const Error& error)>& also = {}) {
  for (std::size_t rank = 0; rank < outcomes.by_rank.size(); ++rank) {
    SCOPED_TRACE("rank " + std::to_string(rank));
    ASSERT_TRUE(outcomes.by_rank[rank].has_value());
    const Error& error = *outcomes.by_rank[rank];
    if (rank == kBadRank) {
      EXPECT_EQ(error.code(), code) << error.what();
    } else {
      EXPECT_EQ(error.code(), ErrorCode::kPeerRejected) << error.what();
      EXPECT_EQ(error.context().peer_rank, kBadRank) << error.what();
    }
    if (also) also(rank, error);
    EXPECT_FALSE(outcomes.afterwards[rank].has_value()) << *outcomes.afterwards[rank];
  }
}

}  // namespace epistle::testing
