#include "balance/replica_table.hpp"

#include "layout/replica_parts.hpp"

namespace epistle::balance {

ReplicaTable::ReplicaTable(const SlotTable& table, std::int32_t num_experts, std::span<const double> quotas,
                           const Cluster& cluster, const Locality& locality) {
  const std::vector<std::int32_t> counts = table.replica_counts(num_experts);
  begin_.assign(1, 0);
  for (const std::int32_t count : counts) begin_.push_back(begin_.back() + count);
  entries_.resize(static_cast<std::size_t>(begin_.back()));
  std::vector<std::int32_t> next(begin_.begin(), begin_.end() - 1);
  std::vector<double> weights(entries_.size(), 1.0);
  for (std::int32_t rank = 0; rank < table.num_ranks(); ++rank) {
    const auto r = static_cast<std::size_t>(rank);
    for (std::int32_t slot = table.begin[r]; slot < table.begin[r + 1]; ++slot) {
      const std::int32_t expert = table.expert[static_cast<std::size_t>(slot)];
      if (expert == kEmptySlot) continue;
      const auto at = static_cast<std::size_t>(next[static_cast<std::size_t>(expert)]++);
      entries_[at] = {.rank = rank, .domain = cluster.domain_of(rank), .slot = slot};
      if (!quotas.empty()) weights[at] = quotas[static_cast<std::size_t>(slot)];
    }
  }
  const RankDomains domains{cluster.num_ranks(), cluster.domain_of_rank};
  for (std::size_t expert = 0; expert < counts.size(); ++expert) {
    const auto first = static_cast<std::size_t>(begin_[expert]);
    const std::span<ReplicaEntry> entries =
        std::span(entries_).subspan(first, static_cast<std::size_t>(counts[expert]));
    const std::span<const double> parts = std::span<const double>(weights).subspan(first, entries.size());
    set_replica_parts(entries, parts, domains, locality.max_imbalance);
  }
}

std::span<const ReplicaEntry> ReplicaTable::entries_of(std::int32_t expert) const {
  const auto first = static_cast<std::size_t>(begin_[static_cast<std::size_t>(expert)]);
  const auto end = static_cast<std::size_t>(begin_[static_cast<std::size_t>(expert) + 1]);
  return std::span(entries_).subspan(first, end - first);
}

}  // namespace epistle::balance
