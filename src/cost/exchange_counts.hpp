// How many copies of a token travel, and how far: counts that follow from routing alone.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace epistle {

/// Groups (ranks or domains) that a token's experts lie in, on average, where the top-k experts are drawn uniformly
/// without repetition and every group holds the same number of experts: each group is missed with probability
/// C(E - E/G, k) / C(E, k). `num_groups` that do not divide the experts are taken as fractions of them.
[[nodiscard]] double expected_distinct_groups(double num_experts, double top_k, double num_groups);

struct GroupLimit {
  std::int32_t num_groups = 1;        ///< expert groups of the router
  std::int32_t groups_per_token = 1;  ///< those that one token may choose from
};

/// The same under a router that first chooses `groups_per_token` of its expert groups, where experts lie in contiguous
/// blocks. Exact where groups and ranks nest; otherwise the routing without a limit is the answer.
[[nodiscard]] double expected_distinct_groups(double num_experts, double top_k, double num_groups,
                                              const GroupLimit& limit);

/// Probability of each expert to be among a token's top-k where its popularity is `popularity` (any scale): 1 - exp(-l
/// p) with l such that they add up to `top_k`.
[[nodiscard]] std::vector<double> inclusion_probabilities(std::span<const double> popularity, double top_k);

/// Experts in contiguous blocks over `num_ranks` ranks.
[[nodiscard]] double expected_distinct_groups(std::span<const double> inclusion, std::int32_t num_ranks);

/// Rows of the busiest rank over those of the average one; 1 = even.
[[nodiscard]] double busiest_rank_factor(std::span<const double> inclusion, std::int32_t num_ranks);

/// Popularity of expert e proportional to 1 / (e + 1)^exponent, dealt to ranks like cards so that the hottest experts
/// do not all lie on one: what a router trained for balance looks like, without luck.
[[nodiscard]] std::vector<double> zipf_popularity(std::int32_t num_experts, double exponent);

}  // namespace epistle
