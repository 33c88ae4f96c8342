// From quotas to the parts of [0, 1) by which replicas are chosen (replica_hash.hpp). Floating point is used here only,
// once for a placement; what tokens meet are integers.
#pragma once

#include <cstdint>
#include <span>

#include "layout/replica_hash.hpp"

namespace epistle {

/// Where ranks are.
struct RankDomains {
  std::int32_t num_ranks = 1;
  std::span<const std::int32_t> domain_of_rank = {};  ///< [num_ranks]; empty = all in one

  [[nodiscard]] std::int32_t count() const noexcept;
  [[nodiscard]] std::int32_t domain_of(std::int32_t rank) const noexcept {
    return domain_of_rank.empty() ? 0 : domain_of_rank[static_cast<std::size_t>(rank)];
  }
};

/// Sets the parts of one expert's replicas, whose ranks and domains are set. `quotas`: one for each, of which only the
/// ratios count; where all are 0 replicas are alike. `max_imbalance`: how much more than its quota a replica may get by
/// taking the tokens of its own rank, where near ones come first.
void set_replica_parts(std::span<ReplicaEntry> entries, std::span<const double> quotas, const RankDomains& domains,
                       double max_imbalance);

}  // namespace epistle
