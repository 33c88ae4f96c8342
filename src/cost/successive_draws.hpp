// A token's experts as draws without repetition, each in proportion to the popularity of those not yet drawn: exact
// probabilities, by way of clocks. Let every expert ring after an exponential time of rate p_e; the first k to ring are
// such a draw. So an expert group of rate P is among them with probability
//   integral of P exp(-P l) Pr(fewer than k of the other experts have rung by l) dl,
// and the number that have rung is a sum of independent bits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace epistle {

/// Probability of each group of experts to hold at least one of a token's `top_k`, where expert e lies in group
/// `group_of_expert[e]` of [0, num_groups). Groups may be empty. Throws kInvalidArgument where popularities are
/// negative or fewer than `top_k` of them positive.
[[nodiscard]] std::vector<double> group_hits(std::span<const double> popularity, std::int32_t top_k,
                                             std::span<const std::int32_t> group_of_expert, std::int32_t num_groups);

/// Popularities under which experts are included with the probabilities `inclusion`, which add up to a whole top_k:
/// what a histogram of tokens per expert says. The inverse of inclusion_probabilities.
[[nodiscard]] std::vector<double> popularity_of_inclusion(std::span<const double> inclusion);

}  // namespace epistle
