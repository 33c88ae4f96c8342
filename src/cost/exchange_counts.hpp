// How many copies of a token travel, and how far: counts that follow from routing alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace epistle {

/// Groups (ranks or domains) that a token's experts lie in, on average, where the top-k experts are drawn uniformly
/// without repetition and the sizes of groups differ by one at most: a group of n experts is missed with probability
/// C(E - n, k) / C(E, k).
[[nodiscard]] double expected_distinct_groups(double num_experts, double top_k, double num_groups);

struct GroupLimit {
  std::int32_t num_groups = 1;        ///< expert groups of the router
  std::int32_t groups_per_token = 1;  ///< those that one token may choose from
};

/// The same under a router that first chooses `groups_per_token` of its expert groups by the sum of their two best
/// scores (GroupScore::kTopTwo), where experts lie in contiguous blocks and
/// scores are even in (0, 1), as those of the forced-random generator. What the
/// router leaves to chance is drawn once for a router (see group_limit.hpp); the rest is exact.
[[nodiscard]] double expected_distinct_groups(double num_experts, double top_k, double num_groups,
                                              const GroupLimit& limit);

/// The same where experts are drawn one after the other in proportion to `popularity` (any scale), in contiguous blocks
/// over `num_ranks` ranks.
[[nodiscard]] double expected_distinct_groups(std::span<const double> popularity, std::int32_t top_k,
                                              std::int32_t num_ranks);

/// Probability of each expert to be among a token's top-k where experts are drawn one after the other in proportion to
/// `popularity` (any scale).
[[nodiscard]] std::vector<double> inclusion_probabilities(std::span<const double> popularity, std::int32_t top_k);

/// The rank of every expert where experts lie in contiguous blocks whose sizes differ by one at most.
[[nodiscard]] std::vector<std::int32_t> block_ranks(std::size_t num_experts, std::int32_t num_ranks);

/// Rows of the busiest rank over those of the average one, experts in contiguous blocks; 1 = even.
[[nodiscard]] double busiest_rank_factor(std::span<const double> inclusion, std::int32_t num_ranks);

/// The same over `num_tokens` tokens, which chance spreads, for any placement: `rank_means` are the rows of a token
/// that each rank gets on average, `rank_variances` those of one token.
[[nodiscard]] double expected_busiest_factor(std::span<const double> rank_means, std::span<const double> rank_variances,
                                             double num_tokens);

/// Popularity of expert e proportional to 1 / (e + 1)^exponent, dealt to ranks like cards so that the hottest experts
/// do not all lie on one: what a router trained for balance looks like, without luck.
[[nodiscard]] std::vector<double> zipf_popularity(std::int32_t num_experts, double exponent);

}  // namespace epistle
