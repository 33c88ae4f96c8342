#include "epistle/placement.hpp"

#include <algorithm>
#include <set>
#include <string>

#include "epistle/error.hpp"

#include "core/reject.hpp"

namespace epistle {
namespace {}  // namespace

Placement::Placement(std::int32_t num_experts, const std::vector<std::vector<std::int32_t>>& slot_experts,
                     std::uint64_t generation)
    : generation_(generation) {
  if (num_experts < 1) reject("a placement has " + std::to_string(num_experts) + " experts; there is at least one");
  if (slot_experts.empty()) reject("a placement has no ranks; there is at least one");
  std::vector<std::int32_t> num_replicas(static_cast<std::size_t>(num_experts), 0);
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
      ++num_replicas[static_cast<std::size_t>(expert)];
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
