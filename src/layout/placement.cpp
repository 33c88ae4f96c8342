#include "epistle/placement.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <set>
#include <string>

#include "epistle/error.hpp"

#include "core/reject.hpp"

namespace epistle {
namespace {

/// Whether the choice is one for these slots; but for experts without any quota.
void check_choice(const ReplicaChoice& choice, const std::vector<std::vector<std::int32_t>>& slot_experts) {
  if (!choice.quotas.empty() && choice.quotas.size() != slot_experts.size()) {
    reject("quotas are of " + std::to_string(choice.quotas.size()) + " ranks, slots of " +
           std::to_string(slot_experts.size()) + "; give quotas for every rank, or none");
  }
  for (std::size_t rank = 0; rank < choice.quotas.size(); ++rank) {
    if (choice.quotas[rank].size() != slot_experts[rank].size()) {
      reject("rank " + std::to_string(rank) + " has " + std::to_string(slot_experts[rank].size()) + " slots and " +
             std::to_string(choice.quotas[rank].size()) + " quotas; give one for every slot");
    }
    for (const double quota : choice.quotas[rank]) {
      if (std::isfinite(quota) && quota >= 0.0) continue;
      reject("a slot of rank " + std::to_string(rank) + " has the quota " + std::to_string(quota) +
             "; quotas are numbers from 0 on");
    }
  }
  if (!choice.domain_of_rank.empty() && choice.domain_of_rank.size() != slot_experts.size()) {
    reject("domains are of " + std::to_string(choice.domain_of_rank.size()) + " ranks, slots of " +
           std::to_string(slot_experts.size()) + "; give the domain of every rank, or none");
  }
  for (const std::int32_t domain : choice.domain_of_rank) {
    if (domain >= 0 && domain < static_cast<std::int32_t>(slot_experts.size())) continue;
    reject("a rank is in domain " + std::to_string(domain) + "; domains of " + std::to_string(slot_experts.size()) +
           " ranks are numbered from 0 to " + std::to_string(slot_experts.size() - 1));
  }
  if (!std::isfinite(choice.max_imbalance) || choice.max_imbalance < 0.0) {
    reject("max_imbalance is " + std::to_string(choice.max_imbalance) + "; it is a number from 0 on");
  }
}

}  // namespace

Placement::Placement(std::int32_t num_experts, const std::vector<std::vector<std::int32_t>>& slot_experts,
                     std::uint64_t generation, const ReplicaChoice& choice)
    : generation_(generation), choice_(choice) {
  if (num_experts < 1) reject("a placement has " + std::to_string(num_experts) + " experts; there is at least one");
  if (slot_experts.empty()) reject("a placement has no ranks; there is at least one");
  check_choice(choice, slot_experts);
  // Of more experts than slots one of the first has none: so memory goes with the slots that were given, and not with a
  // number.
  const std::size_t num_slots = std::accumulate(slot_experts.begin(), slot_experts.end(), std::size_t{0},
                                                [](std::size_t sum, const auto& slots) { return sum + slots.size(); });
  std::vector<std::int32_t> num_replicas(std::min(static_cast<std::size_t>(num_experts), num_slots + 1), 0);
  slot_begin_.push_back(0);
  for (std::size_t rank = 0; rank < slot_experts.size(); ++rank) {
    std::set<std::int32_t> here;
    for (const std::int32_t expert : slot_experts[rank]) {
      if (expert < 0 || expert >= num_experts) {
        reject("rank " + std::to_string(rank) + " has a slot for expert " + std::to_string(expert) +
               "; experts go from 0 to " + std::to_string(num_experts - 1));
      }
      if (!here.insert(expert).second) {
        reject("rank " + std::to_string(rank) + " has two slots for expert " + std::to_string(expert) +
               "; copies of an expert lie on different ranks");
      }
      if (static_cast<std::size_t>(expert) < num_replicas.size()) ++num_replicas[static_cast<std::size_t>(expert)];
      slot_experts_.push_back(expert);
    }
    slot_begin_.push_back(static_cast<std::int32_t>(slot_experts_.size()));
  }
  const auto homeless = std::find(num_replicas.begin(), num_replicas.end(), 0);
  if (homeless != num_replicas.end()) {
    reject("expert " + std::to_string(homeless - num_replicas.begin()) + " has no slot; every expert needs one");
  }
  replica_begin_.push_back(0);
  for (const std::int32_t count : num_replicas) replica_begin_.push_back(replica_begin_.back() + count);
  replicas_.resize(slot_experts_.size());
  std::vector<std::int32_t> next(replica_begin_.begin(), replica_begin_.end() - 1);
  for (std::int32_t rank = 0; rank < num_ranks(); ++rank) {
    const std::span<const std::int32_t> experts = experts_of(rank);
    for (std::size_t slot = 0; slot < experts.size(); ++slot) {
      std::int32_t& idx = next[static_cast<std::size_t>(experts[slot])];
      replicas_[static_cast<std::size_t>(idx++)] = {.rank = rank, .local_slot = static_cast<std::int32_t>(slot)};
    }
  }
  for (std::int32_t expert = 0; expert < num_experts && !choice.quotas.empty(); ++expert) {
    const std::span<const SlotRef> replicas = replicas_of(expert);
    const bool has_quota = std::any_of(replicas.begin(), replicas.end(), [&](const SlotRef& slot) {
      return choice.quotas[static_cast<std::size_t>(slot.rank)][static_cast<std::size_t>(slot.local_slot)] > 0.0;
    });
    if (!has_quota) {
      reject("all slots of expert " + std::to_string(expert) + " have the quota 0; one at least serves its tokens");
    }
  }
}

std::int32_t Placement::max_slots_per_rank() const noexcept {
  std::int32_t most = 0;
  for (std::size_t rank = 0; rank + 1 < slot_begin_.size(); ++rank) {
    most = std::max(most, slot_begin_[rank + 1] - slot_begin_[rank]);
  }
  return most;
}

std::span<const std::int32_t> Placement::experts_of(std::int32_t rank) const {
  const auto begin = static_cast<std::size_t>(slot_begin_.at(static_cast<std::size_t>(rank)));
  const auto end = static_cast<std::size_t>(slot_begin_.at(static_cast<std::size_t>(rank) + 1));
  return std::span(slot_experts_).subspan(begin, end - begin);
}

std::span<const SlotRef> Placement::replicas_of(std::int32_t expert) const {
  const auto begin = static_cast<std::size_t>(replica_begin_.at(static_cast<std::size_t>(expert)));
  const auto end = static_cast<std::size_t>(replica_begin_.at(static_cast<std::size_t>(expert) + 1));
  return std::span(replicas_).subspan(begin, end - begin);
}

}  // namespace epistle
