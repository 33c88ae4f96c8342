// What a group-limited router leaves to chance: how many of a token's experts lie in each group that it chose. Groups
// are chosen by their best scores, so they hold more of the top-k than chance would give them, and no simple formula
// says how many. Which experts of a group, and which groups, is then exact arithmetic: all are alike.
#pragma once

#include <cstdint>
#include <vector>

#include "cost/exchange_counts.hpp"

namespace epistle {

struct GroupRouter {
  std::int32_t experts_per_group = 1;
  std::int32_t top_k = 1;
  GroupLimit limit;
};

struct GroupPicks {
  std::vector<double> groups_by_picks;  ///< [top_k + 1]; groups of a token that hold so many of its experts
  std::vector<double> used_groups;      ///< [groups_per_token + 1]; probability that so many groups hold any
};

/// Scores are independent and even in (0, 1), groups are chosen by the sum of their two best ones. Means of a fixed
/// number of tokens drawn from a fixed seed, so equal everywhere; drawn once for every router. May be called from
/// several threads.
[[nodiscard]] const GroupPicks& draw_group_picks(const GroupRouter& router);

}  // namespace epistle
