#include "balance/copy_rules.hpp"

#include <algorithm>

namespace epistle::balance {

CopyCount::CopyCount(const SlotTable& from, std::int32_t num_experts, const Cluster& cluster, const CopyLimits& limits)
    : cluster_(&cluster),
      limits_(limits),
      num_experts_(static_cast<std::size_t>(num_experts)),
      rank_has_(num_experts_ * static_cast<std::size_t>(cluster.num_ranks()), 0),
      domain_has_(num_experts_ * static_cast<std::size_t>(cluster.num_domains()), 0),
      num_into_(static_cast<std::size_t>(cluster.num_ranks()), 0) {
  for (std::int32_t rank = 0; rank < from.num_ranks(); ++rank) {
    for (const std::int32_t expert : from.experts_of(rank)) {
      if (expert == kEmptySlot) continue;
      const auto e = static_cast<std::size_t>(expert);
      rank_has_[static_cast<std::size_t>(rank) * num_experts_ + e] = 1;
      domain_has_[static_cast<std::size_t>(cluster.domain_of(rank)) * num_experts_ + e] = 1;
    }
  }
}

std::int64_t CopyCount::cost(std::int32_t rank, std::int32_t lost, std::int32_t gained) const {
  const std::int64_t more = gained != kEmptySlot && !held(rank, gained) ? 1 : 0;
  const std::int64_t fewer = lost != kEmptySlot && !held(rank, lost) ? 1 : 0;
  return more - fewer;
}

void CopyCount::add(std::int32_t rank, std::int32_t expert, std::int64_t sign) {
  if (expert == kEmptySlot || held(rank, expert)) return;
  num_copies_ += sign;
  num_into_[static_cast<std::size_t>(rank)] += sign;
  if (is_across(rank, expert)) num_across_ += sign;
}

void CopyCount::apply(std::int32_t rank, std::int32_t lost, std::int32_t gained) {
  add(rank, lost, -1);
  add(rank, gained, 1);
}

bool CopyCount::is_allowed() const noexcept {
  return num_copies_ <= limits_.max_copies && num_across_ <= limits_.max_across_domains &&
         std::all_of(num_into_.begin(), num_into_.end(),
                     [this](std::int64_t copies) { return copies <= limits_.max_into_rank; });
}

bool CopyCount::allows(std::int32_t rank, std::int32_t expert) const {
  if (held(rank, expert)) return true;
  return num_copies_ < limits_.max_copies && num_into_[static_cast<std::size_t>(rank)] < limits_.max_into_rank &&
         (!is_across(rank, expert) || num_across_ < limits_.max_across_domains);
}

}  // namespace epistle::balance
