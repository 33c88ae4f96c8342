#include "layout/replica_parts.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace epistle {
namespace {

constexpr double kOne = 4294967296.0;  // 2^32

/// A part of [0, 1) in units of 2^-32; all of it is the largest number, 2^-32 short.
std::uint32_t to_units(double part) {
  return static_cast<std::uint32_t>(std::clamp(std::floor(part * kOne), 0.0, kOne - 1.0));
}

/// Ends of consecutive parts in proportion to `weights`. An end is never before the one before it, and parts without
/// weight behind the last that has some begin where the whole ends, so that nobody is in them.
template <typename SetEnd>
void set_ends(std::span<const double> weights, SetEnd set_end) {
  double total = 0.0;
  for (const double weight : weights) total += weight;
  double sum = 0.0;
  for (std::size_t idx = 0; idx < weights.size(); ++idx) {
    sum += total > 0.0 ? weights[idx] / total : 1.0 / static_cast<double>(weights.size());
    set_end(idx, to_units(sum));
  }
}

/// The near shares of one expert's replicas. `quotas` sum to 1; every rank sends the same part of the tokens.
void set_locality(std::span<ReplicaEntry> entries, std::span<const double> quotas, const RankDomains& domains,
                  double max_imbalance) {
  const std::int32_t num_domains = domains.count();
  const double rank_supply = 1.0 / domains.num_ranks;
  std::vector<double> left(quotas.begin(), quotas.end());  // of the quotas
  std::vector<double> domain_supply(static_cast<std::size_t>(num_domains), 0.0);
  for (std::int32_t rank = 0; rank < domains.num_ranks; ++rank) {
    domain_supply[static_cast<std::size_t>(domains.domain_of(rank))] += rank_supply;
  }
  for (std::size_t idx = 0; idx < entries.size(); ++idx) {
    const double taken = std::min(rank_supply, quotas[idx] * (1.0 + max_imbalance));
    entries[idx].own_share = to_units(taken / rank_supply);
    left[idx] = std::max(left[idx] - taken, 0.0);
    domain_supply[static_cast<std::size_t>(entries[idx].domain)] -= taken;
  }
  std::vector<double> far(left);
  for (std::int32_t domain = 0; domain < num_domains; ++domain) {
    std::vector<std::size_t> members;
    std::vector<double> weights;
    double wanted = 0.0;
    for (std::size_t idx = 0; idx < entries.size(); ++idx) {
      if (entries[idx].domain != domain) continue;
      members.push_back(idx);
      weights.push_back(left[idx]);
      wanted += left[idx];
    }
    const double supply = std::max(domain_supply[static_cast<std::size_t>(domain)], 0.0);
    if (members.empty() || supply <= 0.0 || wanted <= 0.0) continue;
    const double taken = std::min(supply, wanted);
    for (const std::size_t idx : members) {
      entries[idx].domain_share = to_units(taken / supply);
      far[idx] = left[idx] * (1.0 - taken / wanted);
    }
    set_ends(weights, [&](std::size_t place, std::uint32_t end) { entries[members[place]].domain_end = end; });
  }
  set_ends(far, [&](std::size_t idx, std::uint32_t end) { entries[idx].far_end = end; });
}

}  // namespace

std::int32_t RankDomains::count() const noexcept {
  return domain_of_rank.empty() ? 1 : *std::max_element(domain_of_rank.begin(), domain_of_rank.end()) + 1;
}

void set_replica_parts(std::span<ReplicaEntry> entries, std::span<const double> quotas, const RankDomains& domains,
                       double max_imbalance) {
  std::vector<double> parts(quotas.begin(), quotas.end());
  double total = 0.0;
  for (const double part : parts) total += part;
  for (double& part : parts) part = total > 0.0 ? part / total : 1.0 / static_cast<double>(parts.size());
  set_ends(parts, [&](std::size_t idx, std::uint32_t end) { entries[idx].part_end = end; });
  if (entries.size() > 1) set_locality(entries, parts, domains, max_imbalance);
}

}  // namespace epistle
