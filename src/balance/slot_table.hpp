// Which slot of which rank holds which expert, while a placement is being decided: slots may be empty, and a placement
// that comes from elsewhere may hold an expert twice on a rank. What dispatch takes is epistle::Placement.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "epistle/placement.hpp"

namespace epistle::balance {

inline constexpr std::int32_t kEmptySlot = -1;

/// Where ranks are, and how many experts each can hold.
struct Cluster {
  std::vector<std::int32_t> slots_of_rank;   ///< [num_ranks]; may differ, may be 0
  std::vector<std::int32_t> domain_of_rank;  ///< [num_ranks]; empty = all in one scale-up domain

  /// `num_slots` shared out to `num_ranks`, the first (num_slots mod num_ranks) one more; domains of equal size, the
  /// first ones one more.
  [[nodiscard]] static Cluster even(std::int32_t num_ranks, std::int32_t num_slots, std::int32_t num_domains = 1);

  [[nodiscard]] std::int32_t num_ranks() const noexcept { return static_cast<std::int32_t>(slots_of_rank.size()); }
  [[nodiscard]] std::int32_t num_slots() const noexcept;
  [[nodiscard]] std::int32_t num_domains() const noexcept;
  [[nodiscard]] std::int32_t domain_of(std::int32_t rank) const noexcept {
    return domain_of_rank.empty() ? 0 : domain_of_rank[static_cast<std::size_t>(rank)];
  }
  /// Ranks that can hold an expert at all.
  [[nodiscard]] std::int32_t num_holders() const noexcept;

  /// Throws kInvalidArgument where numbers are negative, domains are not those of the ranks, or `num_experts` do not
  /// fit.
  void check(std::int32_t num_experts) const;
};

struct SlotTable {
  std::vector<std::int32_t> begin;   ///< [num_ranks + 1] into expert
  std::vector<std::int32_t> expert;  ///< [num_slots]; kEmptySlot = none

  [[nodiscard]] static SlotTable empty(std::span<const std::int32_t> slots_of_rank);
  /// Contiguous blocks of experts: those of the trivial placement where they fit, else in proportion to the slots. What
  /// slots are left over stay empty. Throws kInvalidArgument where not every expert has a slot, or a rank a negative
  /// number.
  [[nodiscard]] static SlotTable trivial(std::int32_t num_experts, std::span<const std::int32_t> slots_of_rank);

  [[nodiscard]] std::int32_t num_ranks() const noexcept { return static_cast<std::int32_t>(begin.size()) - 1; }
  [[nodiscard]] std::int32_t num_slots() const noexcept { return static_cast<std::int32_t>(expert.size()); }
  [[nodiscard]] std::span<const std::int32_t> experts_of(std::int32_t rank) const {
    const auto first = static_cast<std::size_t>(begin[static_cast<std::size_t>(rank)]);
    return std::span(expert).subspan(first,
                                     static_cast<std::size_t>(begin[static_cast<std::size_t>(rank) + 1]) - first);
  }
  [[nodiscard]] std::vector<std::int32_t> rank_of_slot() const;
  /// Replicas of every expert.
  [[nodiscard]] std::vector<std::int32_t> replica_counts(std::int32_t num_experts) const;

  /// Throws kInvalidArgument where an expert has no slot, an id is out of range, or the ranks and slots are not those
  /// of `cluster`.
  void check(std::int32_t num_experts, const Cluster& cluster) const;

  /// For dispatch. Empty slots are left out: a rank's local slots are those that hold something, in order. `quotas`
  /// [num_slots], or none: go into `choice`; replicas of an expert that has none are alike.
  [[nodiscard]] Placement to_placement(std::int32_t num_experts, std::uint64_t generation,
                                       std::span<const double> quotas = {}, epistle::ReplicaChoice choice = {}) const;

  friend bool operator==(const SlotTable&, const SlotTable&) = default;
};

}  // namespace epistle::balance
