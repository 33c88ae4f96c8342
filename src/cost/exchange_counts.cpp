#include "cost/exchange_counts.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "core/reject.hpp"
#include "cost/group_limit.hpp"
#include "cost/successive_draws.hpp"
#include "layout/dispatch_layout.hpp"

namespace epistle {
namespace {

/// Probability that none of k experts drawn out of `num_experts` lies among `num_inside` of them.
double miss_probability(double num_experts, double num_inside, double top_k) {
  const double outside = num_experts - num_inside;
  if (outside < top_k) return 0.0;
  // C(outside, k) / C(all, k); the logarithm of the gamma function takes fractions of experts as well.
  return std::exp(std::lgamma(outside + 1) - std::lgamma(outside - top_k + 1) - std::lgamma(num_experts + 1) +
                  std::lgamma(num_experts - top_k + 1));
}

}  // namespace

double expected_distinct_groups(double num_experts, double top_k, double num_groups) {
  if (num_experts < 1 || top_k < 1 || top_k > num_experts || num_groups < 1) {
    reject("distinct groups need at least one group and between one expert per token and all experts");
  }
  if (num_groups >= num_experts) return top_k;
  const double small = std::floor(num_experts / num_groups);
  const double num_large = num_experts - small * num_groups;  // groups that hold one more
  return num_groups - (num_groups - num_large) * miss_probability(num_experts, small, top_k) -
         num_large * miss_probability(num_experts, small + 1, top_k);
}

double expected_distinct_groups(double num_experts, double top_k, double num_groups, const GroupLimit& limit) {
  const double router_groups = limit.num_groups;
  const double chosen = limit.groups_per_token;
  if (limit.num_groups <= 1 || chosen >= router_groups) {
    return expected_distinct_groups(num_experts, top_k, num_groups);
  }
  const double group_experts = num_experts / router_groups;
  if (top_k > chosen * group_experts) reject("top_k is larger than the experts of the groups that a token may choose");
  const GroupPicks& picks = draw_group_picks({.experts_per_group = static_cast<std::int32_t>(group_experts),
                                              .top_k = static_cast<std::int32_t>(top_k),
                                              .limit = limit});
  if (num_groups >= router_groups) {
    // Parts of router groups: a group's picks are any of its experts.
    const double parts = num_groups / router_groups;
    double distinct = 0.0;
    for (std::size_t count = 1; count < picks.groups_by_picks.size(); ++count) {
      if (picks.groups_by_picks[count] <= 0.0) continue;
      distinct +=
          picks.groups_by_picks[count] * expected_distinct_groups(group_experts, static_cast<double>(count), parts);
    }
    return distinct;
  }
  // Unions of router groups, all alike: one is missed where it holds none of the groups that are used. Unions of
  // unequal size lie between those of the sizes next to it, as binomials of fractions do.
  const double per_union = router_groups / num_groups;
  double missed = 0.0;
  for (std::size_t used = 1; used < picks.used_groups.size(); ++used) {
    missed += picks.used_groups[used] * miss_probability(router_groups, per_union, static_cast<double>(used));
  }
  return num_groups * (1.0 - missed);
}

double expected_distinct_groups(std::span<const double> popularity, std::int32_t top_k, std::int32_t num_ranks) {
  const std::vector<double> hits = group_hits(popularity, top_k, block_ranks(popularity.size(), num_ranks), num_ranks);
  return std::accumulate(hits.begin(), hits.end(), 0.0);
}

std::vector<double> inclusion_probabilities(std::span<const double> popularity, std::int32_t top_k) {
  std::vector<std::int32_t> alone(popularity.size());
  std::iota(alone.begin(), alone.end(), 0);
  return group_hits(popularity, top_k, alone, static_cast<std::int32_t>(alone.size()));
}

std::vector<std::int32_t> block_ranks(std::size_t num_experts, std::int32_t num_ranks) {
  if (num_ranks < 1) reject("a placement needs at least one rank");
  const ExpertPartition partition{static_cast<std::int32_t>(num_experts), num_ranks};
  std::vector<std::int32_t> ranks(num_experts);
  for (std::size_t expert = 0; expert < num_experts; ++expert) {
    ranks[expert] = partition.rank_of(static_cast<std::int32_t>(expert));
  }
  return ranks;
}

double busiest_rank_factor(std::span<const double> inclusion, std::int32_t num_ranks) {
  const std::vector<std::int32_t> ranks = block_ranks(inclusion.size(), num_ranks);
  std::vector<double> rows(static_cast<std::size_t>(num_ranks), 0.0);
  for (std::size_t expert = 0; expert < ranks.size(); ++expert) {
    rows[static_cast<std::size_t>(ranks[expert])] += inclusion[expert];
  }
  const double total = std::accumulate(rows.begin(), rows.end(), 0.0);
  return total > 0.0 ? *std::max_element(rows.begin(), rows.end()) * num_ranks / total : 1.0;
}

double expected_busiest_factor(std::span<const double> rank_means, std::span<const double> rank_variances,
                               double num_tokens) {
  if (rank_means.empty() || rank_means.size() != rank_variances.size() || num_tokens < 1) {
    reject("the busiest rank needs a mean and a variance of every rank, and tokens");
  }
  const double mean =
      std::accumulate(rank_means.begin(), rank_means.end(), 0.0) / static_cast<double>(rank_means.size());
  if (mean <= 0.0) return 1.0;
  // E[max] = top - integral below it of Pr(max < x), of independent normal loads; beyond six deviations nothing
  // happens.
  constexpr double kDeviations = 6.0;
  constexpr int kSteps = 600;
  double low = *std::max_element(rank_means.begin(), rank_means.end());
  double high = low;
  for (std::size_t rank = 0; rank < rank_means.size(); ++rank) {
    const double deviation = std::sqrt(rank_variances[rank] / num_tokens);
    high = std::max(high, rank_means[rank] + kDeviations * deviation);
  }
  low -= high - low;
  const double step = (high - low) / kSteps;
  double below = 0.0;
  for (int idx = 0; idx < kSteps && step > 0.0; ++idx) {
    const double load = low + step * (idx + 0.5);
    double all_below = 1.0;
    for (std::size_t rank = 0; rank < rank_means.size() && all_below > 0.0; ++rank) {
      const double deviation = std::sqrt(rank_variances[rank] / num_tokens);
      const double gap = load - rank_means[rank];
      all_below *=
          deviation > 0.0 ? 0.5 * std::erfc(-gap / (deviation * std::numbers::sqrt2)) : (gap >= 0.0 ? 1.0 : 0.0);
    }
    below += step * all_below;
  }
  return (high - below) / mean;
}

std::vector<double> zipf_popularity(std::int32_t num_experts, double exponent) {
  if (num_experts < 1 || exponent < 0.0) reject("a popularity needs an expert and an exponent of at least 0");
  const auto count = static_cast<std::size_t>(num_experts);
  // Bit reversal keeps neighbours in popularity apart, whatever the number of ranks.
  std::size_t range = 1;
  while (range < count) range *= 2;
  std::vector<double> popularity;
  for (std::size_t position = 0; position < range; ++position) {
    std::size_t reversed = 0;
    for (std::size_t bit = 1; bit < range; bit *= 2) reversed = reversed * 2 + ((position & bit) != 0 ? 1 : 0);
    if (reversed < count) popularity.push_back(1.0 / std::pow(static_cast<double>(reversed + 1), exponent));
  }
  return popularity;
}

}  // namespace epistle
