// Which slot serves a token's expert, for every way in which replicas are chosen.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "balance/replica_table.hpp"
#include "balance/slot_table.hpp"

namespace epistle::balance {

enum class ReplicaChoice : std::int32_t {
  kSingle,      ///< every expert has one slot
  kEven,        ///< replicas take equal parts, by hash
  kRoundRobin,  ///< replicas take turns
  kHash,        ///< by hash with quotas
  kExact,       ///< by the quotas of the batch
};
[[nodiscard]] std::string_view to_string(ReplicaChoice choice) noexcept;

struct SlotQuestion {
  std::int32_t expert = 0;
  std::int64_t token_position = 0;  ///< in the step, over all ranks
  std::int32_t src_rank = 0;
};

/// Made for one step. Questions come in the order of tokens.
class SlotChoice {
 public:
  struct Rules {
    ReplicaChoice choice = ReplicaChoice::kEven;
    std::uint64_t step = 0;
    std::span<const double> quotas = {};             ///< [num_slots] for kHash
    std::span<const std::int64_t> slot_tokens = {};  ///< [num_slots] for kExact: tokens that each slot takes
    bool prefers_near = false;                       ///< for kHash
    Locality locality = {};                          ///< with prefers_near
  };
  SlotChoice(const SlotTable& table, std::int32_t num_experts, const Cluster& cluster, const Rules& rules);

  [[nodiscard]] const ReplicaEntry& choose(const SlotQuestion& question);

 private:
  [[nodiscard]] std::int32_t take_exact(std::int32_t expert);

  ReplicaTable table_;
  const Cluster* cluster_;
  Rules rules_;
  std::vector<std::int64_t> num_chosen_;  // [num_experts]
  std::vector<std::int64_t> whole_;       // [entries] for kExact: tokens that a replica takes
  std::vector<std::int64_t> left_;        // and still takes
};

}  // namespace epistle::balance
