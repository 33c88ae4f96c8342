#include "balance/slot_choice.hpp"

#include <algorithm>
#include <cstddef>

namespace epistle::balance {

std::string_view to_string(ReplicaChoice choice) noexcept {
  constexpr std::string_view kNames[] = {"single", "even", "round-robin", "hash", "exact"};
  return kNames[static_cast<std::size_t>(choice)];
}

SlotChoice::SlotChoice(const SlotTable& table, std::int32_t num_experts, const Cluster& cluster, const Rules& rules)
    : table_(table, num_experts, rules.choice == ReplicaChoice::kHash ? rules.quotas : std::span<const double>(),
             cluster, rules.locality),
      cluster_(&cluster),
      rules_(rules),
      num_chosen_(static_cast<std::size_t>(num_experts), 0) {
  if (rules.choice != ReplicaChoice::kExact) return;
  left_.resize(static_cast<std::size_t>(table_.view().begin[num_experts]));
  for (std::size_t entry = 0; entry < left_.size(); ++entry) {
    const ReplicaEntry& replica = table_.entry(static_cast<std::int32_t>(entry));
    left_[entry] = rules.slot_tokens[static_cast<std::size_t>(replica.slot)];
  }
  whole_ = left_;
}

const ReplicaEntry& SlotChoice::choose(const SlotQuestion& question) {
  const ReplicaTableView view = table_.view();
  const std::int32_t first = view.begin[question.expert];
  const std::int32_t num_replicas = view.begin[question.expert + 1] - first;
  if (num_replicas == 1) return table_.entry(first);
  const ReplicaKey key{.token_position = question.token_position, .expert = question.expert, .step_seed = rules_.step};
  switch (rules_.choice) {
    case ReplicaChoice::kRoundRobin: {
      const std::int64_t turn = num_chosen_[static_cast<std::size_t>(question.expert)]++;
      return table_.entry(first + static_cast<std::int32_t>(turn % num_replicas));
    }
    case ReplicaChoice::kExact:
      return table_.entry(take_exact(question.expert));
    case ReplicaChoice::kHash:
      if (rules_.prefers_near) {
        return table_.entry(choose_near_replica(view, key, question.src_rank, cluster_->domain_of(question.src_rank)));
      }
      break;
    case ReplicaChoice::kSingle:
    case ReplicaChoice::kEven:
      break;
  }
  return table_.entry(choose_replica(view, key));
}

/// The replica that has the largest part of its own left: parts are kept to the token, and tokens that follow each
/// other are spread.
std::int32_t SlotChoice::take_exact(std::int32_t expert) {
  const ReplicaTableView view = table_.view();
  auto best = static_cast<std::size_t>(view.begin[expert]);
  for (auto entry = best + 1; entry < static_cast<std::size_t>(view.begin[expert + 1]); ++entry) {
    // Integers below 2^31 each: the products are exact.
    if (left_[entry] * whole_[best] > left_[best] * whole_[entry] || whole_[best] == 0) best = entry;
  }
  --left_[best];
  return static_cast<std::int32_t>(best);
}

}  // namespace epistle::balance
