// Makes the tables that replicas are chosen by (layout/replica_hash.hpp) from a placement and its quotas.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "balance/slot_table.hpp"
#include "layout/replica_hash.hpp"

namespace epistle::balance {

struct Locality {
  /// How much more than its quota a replica may get by taking the tokens of its own rank: 0.05 = 5%. Tokens are taken
  /// to come from all ranks alike.
  double max_imbalance = 0.0;
};

class ReplicaTable {
 public:
  /// `quotas` [num_slots]: parts of an expert's load; those of an expert need not sum to 1, only their ratios count.
  /// Without any, replicas are alike.
  ReplicaTable(const SlotTable& table, std::int32_t num_experts, std::span<const double> quotas, const Cluster& cluster,
               const Locality& locality = {});

  [[nodiscard]] ReplicaTableView view() const noexcept { return {begin_.data(), entries_.data()}; }
  [[nodiscard]] const ReplicaEntry& entry(std::int32_t idx) const { return entries_[static_cast<std::size_t>(idx)]; }
  [[nodiscard]] std::span<const ReplicaEntry> entries_of(std::int32_t expert) const;

 private:
  std::vector<std::int32_t> begin_;
  std::vector<ReplicaEntry> entries_;
};

}  // namespace epistle::balance
