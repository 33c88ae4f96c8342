#include "cost/exchange_counts.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/reject.hpp"

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
  return num_groups * (1.0 - miss_probability(num_experts, num_experts / num_groups, top_k));
}

double expected_distinct_groups(double num_experts, double top_k, double num_groups, const GroupLimit& limit) {
  const double router_groups = limit.num_groups;
  const double chosen = limit.groups_per_token;
  if (limit.num_groups <= 1 || chosen >= router_groups) {
    return expected_distinct_groups(num_experts, top_k, num_groups);
  }
  const double group_experts = num_experts / router_groups;
  if (top_k > chosen * group_experts) reject("top_k is larger than the experts of the groups that a token may choose");
  if (num_groups >= router_groups) {
    // Parts of router groups: the chosen ones are a smaller model of their own.
    return expected_distinct_groups(chosen * group_experts, top_k, num_groups * chosen / router_groups);
  }
  // Unions of router groups: how many of the chosen groups a union holds is hypergeometric.
  const double per_union = router_groups / num_groups;
  if (per_union != std::floor(per_union)) return expected_distinct_groups(num_experts, top_k, num_groups);
  double hit = 0.0;
  const auto most = static_cast<int>(std::min(per_union, chosen));
  for (int count = 1; count <= most; ++count) {
    const double inside = count;
    if (chosen - inside > router_groups - per_union) continue;
    const auto log_choose = [](double n, double k) {
      return std::lgamma(n + 1) - std::lgamma(k + 1) - std::lgamma(n - k + 1);
    };
    const double probability =
        std::exp(log_choose(per_union, inside) + log_choose(router_groups - per_union, chosen - inside) -
                 log_choose(router_groups, chosen));
    hit += probability * (1.0 - miss_probability(chosen * group_experts, inside * group_experts, top_k));
  }
  return num_groups * hit;
}

std::vector<double> inclusion_probabilities(std::span<const double> popularity, double top_k) {
  const double total = std::accumulate(popularity.begin(), popularity.end(), 0.0);
  if (total <= 0.0 || top_k <= 0.0) reject("popularities must add up to more than 0, and top_k must be positive");
  std::vector<double> inclusion(popularity.size(), 1.0);
  const auto num_used = std::count_if(popularity.begin(), popularity.end(), [](double p) { return p > 0.0; });
  const auto fill = [&](double lambda) {
    double sum = 0.0;
    for (std::size_t expert = 0; expert < popularity.size(); ++expert) {
      inclusion[expert] = -std::expm1(-lambda * popularity[expert] / total);
      sum += inclusion[expert];
    }
    return sum;
  };
  constexpr double kLargest = 1e12;
  if (top_k >= static_cast<double>(num_used)) {
    (void)fill(kLargest);
    return inclusion;
  }
  double low = 0.0;
  double high = top_k;
  while (fill(high) < top_k && high < kLargest) high *= 2;
  constexpr int kBisections = 60;
  for (int step = 0; step < kBisections; ++step) {
    const double middle = (low + high) / 2;
    (fill(middle) < top_k ? low : high) = middle;
  }
  (void)fill(high);
  return inclusion;
}

namespace {

/// Calls `visit` with the experts of each rank, in contiguous blocks whose sizes differ by one at most.
template <typename Visit>
void for_each_block(std::span<const double> inclusion, std::int32_t num_ranks, Visit visit) {
  if (num_ranks < 1) reject("a placement needs at least one rank");
  const auto ranks = static_cast<std::size_t>(num_ranks);
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    const std::size_t begin = inclusion.size() * rank / ranks;
    const std::size_t end = inclusion.size() * (rank + 1) / ranks;
    visit(inclusion.subspan(begin, end - begin));
  }
}

}  // namespace

double expected_distinct_groups(std::span<const double> inclusion, std::int32_t num_ranks) {
  double distinct = 0.0;
  for_each_block(inclusion, num_ranks, [&](std::span<const double> block) {
    double missed = 1.0;
    for (const double probability : block) missed *= 1.0 - probability;
    distinct += 1.0 - missed;
  });
  return distinct;
}

double busiest_rank_factor(std::span<const double> inclusion, std::int32_t num_ranks) {
  double busiest = 0.0;
  double total = 0.0;
  for_each_block(inclusion, num_ranks, [&](std::span<const double> block) {
    const double rows = std::accumulate(block.begin(), block.end(), 0.0);
    busiest = std::max(busiest, rows);
    total += rows;
  });
  return total > 0.0 ? busiest * num_ranks / total : 1.0;
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
