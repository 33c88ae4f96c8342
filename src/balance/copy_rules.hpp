// What copies a change of placement takes, and which of them are allowed.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "balance/slot_table.hpp"

namespace epistle::balance {

inline constexpr std::int64_t kUnlimited = std::numeric_limits<std::int64_t>::max();

/// Counted in copies of an expert's weights between ranks.
struct CopyLimits {
  std::int64_t max_copies = kUnlimited;
  std::int64_t max_into_rank = kUnlimited;
  std::int64_t max_across_domains = kUnlimited;
};

/// Counts the copies that lead from one placement to another while that is searched for. A rank that holds an expert
/// already needs no copy of it.
class CopyCount {
 public:
  CopyCount(const SlotTable& from, std::int32_t num_experts, const Cluster& cluster, const CopyLimits& limits);

  /// Copies more that there are when `rank` holds `gained` in place of `lost`; negative = fewer. Either may be
  /// kEmptySlot.
  [[nodiscard]] std::int64_t cost(std::int32_t rank, std::int32_t lost, std::int32_t gained) const;
  void apply(std::int32_t rank, std::int32_t lost, std::int32_t gained);
  [[nodiscard]] bool is_allowed() const noexcept;
  /// Whether one more copy of `expert` into `rank` is.
  [[nodiscard]] bool allows(std::int32_t rank, std::int32_t expert) const;
  [[nodiscard]] std::int64_t num_copies() const noexcept { return num_copies_; }

 private:
  [[nodiscard]] bool held(std::int32_t rank, std::int32_t expert) const {
    return rank_has_[static_cast<std::size_t>(rank) * num_experts_ + static_cast<std::size_t>(expert)] != 0;
  }
  [[nodiscard]] bool is_across(std::int32_t rank, std::int32_t expert) const {
    return domain_has_[static_cast<std::size_t>(cluster_->domain_of(rank)) * num_experts_ +
                       static_cast<std::size_t>(expert)] == 0;
  }
  void add(std::int32_t rank, std::int32_t expert, std::int64_t sign);

  const Cluster* cluster_;
  CopyLimits limits_;
  std::size_t num_experts_;
  std::vector<char> rank_has_;    // [num_ranks, num_experts]; before
  std::vector<char> domain_has_;  // [num_domains, num_experts]; before
  std::int64_t num_copies_ = 0;
  std::int64_t num_across_ = 0;
  std::vector<std::int64_t> num_into_;  // [num_ranks]
};

}  // namespace epistle::balance
