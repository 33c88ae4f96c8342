#include "simulate/closed_forms.hpp"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <vector>

#include "cost/exchange_counts.hpp"
#include "cost/recorded_sets.hpp"
#include "cost/successive_draws.hpp"

namespace epistle::simulate {
namespace {

/// The rank of every expert; empty where one has several.
std::vector<std::int32_t> rank_of_expert(const balance::SlotTable& placement, std::int32_t num_experts) {
  const std::vector<std::int32_t> counts = placement.replica_counts(num_experts);
  if (std::any_of(counts.begin(), counts.end(), [](std::int32_t count) { return count != 1; })) return {};
  std::vector<std::int32_t> ranks(counts.size());
  for (std::int32_t rank = 0; rank < placement.num_ranks(); ++rank) {
    for (const std::int32_t expert : placement.experts_of(rank)) {
      if (expert != balance::kEmptySlot) ranks[static_cast<std::size_t>(expert)] = rank;
    }
  }
  return ranks;
}

double sum(const std::vector<double>& values) { return std::accumulate(values.begin(), values.end(), 0.0); }

/// The busiest rank of so many tokens that include experts with these probabilities. A rank's rows of one token vary as
/// independent bits of its experts would, less what the fixed number of bits of all takes away.
double busiest_factor(const std::vector<double>& inclusion, const std::vector<std::int32_t>& ranks,
                      std::int32_t num_ranks, double num_tokens) {
  std::vector<double> means(static_cast<std::size_t>(num_ranks), 0.0);
  std::vector<double> variances(means.size(), 0.0);
  for (std::size_t expert = 0; expert < ranks.size(); ++expert) {
    const auto rank = static_cast<std::size_t>(ranks[expert]);
    means[rank] += inclusion[expert];
    variances[rank] += inclusion[expert] * std::max(1.0 - inclusion[expert], 0.0);
  }
  const double total = sum(variances);
  for (double& variance : variances) variance *= total > 0 ? 1.0 - variance / total : 0.0;
  return expected_busiest_factor(means, variances, num_tokens);
}

ClosedForms forms_of_sets(const RecordedSets& sets, std::span<const std::int32_t> labels,
                          const std::vector<std::int32_t>& ranks, const RankGrid& grid, double num_tokens) {
  std::vector<std::int32_t> recorded_ranks;
  std::vector<std::int32_t> recorded_domains;
  for (const std::int32_t label : labels) {
    recorded_ranks.push_back(ranks[static_cast<std::size_t>(label)]);
    recorded_domains.push_back(grid.domain_of(recorded_ranks.back()));
  }
  ClosedForms forms;
  forms.distinct_ranks = sets.expected_distinct_groups(recorded_ranks, grid.num_ranks);
  forms.distinct_domains = sets.expected_distinct_groups(recorded_domains, grid.num_domains());
  forms.busiest_rank_factor = busiest_factor(sets.inclusion(), recorded_ranks, grid.num_ranks, num_tokens);
  return forms;
}

}  // namespace

std::optional<ClosedForms> closed_forms(const TokenSource& source, const TokenRules& rules,
                                        const balance::SlotTable& placement, const RankGrid& grid) {
  const std::vector<std::int32_t> ranks = rank_of_expert(placement, source.num_experts());
  if (ranks.empty()) return std::nullopt;
  const double num_tokens = static_cast<double>(rules.tokens_per_rank) * grid.num_ranks;
  ClosedForms forms;
  if (source.recorded() != nullptr) {
    return forms_of_sets(*source.recorded(), source.labels(), ranks, grid, num_tokens);
  }
  if (const auto popularity = source.popularity()) {
    std::vector<std::int32_t> domains;
    for (const std::int32_t rank : ranks) domains.push_back(grid.domain_of(rank));
    forms.distinct_ranks = sum(group_hits(*popularity, source.top_k(), ranks, grid.num_ranks));
    forms.distinct_domains = sum(group_hits(*popularity, source.top_k(), domains, grid.num_domains()));
    forms.busiest_rank_factor =
        busiest_factor(inclusion_probabilities(*popularity, source.top_k()), ranks, grid.num_ranks, num_tokens);
    return forms;
  }
  // A group-limited router over blocks of experts. Ranks without any change nothing.
  const bool in_blocks = ranks == block_ranks(ranks.size(), grid.num_ranks);
  if (!source.limits_groups() || !in_blocks) return std::nullopt;
  const GroupLimit limit{.num_groups = rules.num_groups, .groups_per_token = rules.groups_per_token};
  const double experts = source.num_experts();
  const double top_k = source.top_k();
  const double holders = std::min(grid.num_ranks, source.num_experts());
  forms.distinct_ranks = expected_distinct_groups(experts, top_k, holders, limit);
  forms.distinct_domains = expected_distinct_groups(experts, top_k, grid.domain_of(ranks.back()) + 1, limit);
  forms.busiest_rank_factor =
      busiest_factor(std::vector<double>(ranks.size(), top_k / experts), ranks, grid.num_ranks, num_tokens);
  return forms;
}

}  // namespace epistle::simulate
