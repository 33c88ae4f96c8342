// Placement: which slots on which ranks hold which expert. A slot is a place for one expert's weights; an expert that
// has several is replicated.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "epistle/export.hpp"

namespace epistle {

/// A copy of an expert's weights: slot `local_slot` of `rank`.
struct SlotRef {
  std::int32_t rank = 0;
  std::int32_t local_slot = 0;
  friend constexpr bool operator==(const SlotRef&, const SlotRef&) = default;
};

/// Which of an expert's slots serves a token: see "Choice of replica" in dispatcher.hpp.
struct ReplicaChoice {
  /// For every rank, for every slot: its part of its expert's tokens. Only the ratios among an expert's slots count.
  /// Empty: all slots of an expert are alike.
  std::vector<std::vector<double>> quotas = {};
  /// The slot on the token's own rank comes first, then those in its domain, as far as that keeps the quotas when all
  /// ranks have as many tokens for the expert.
  bool near_first = false;
  std::vector<std::int32_t> domain_of_rank = {};  ///< domains are numbered from 0; empty = all ranks are in one
  /// near_first: how much more than its quota a slot may get by taking the tokens of its own rank: 0.05 = 5%.
  double max_imbalance = 0.0;

  friend bool operator==(const ReplicaChoice&, const ReplicaChoice&) = default;
};

/// Logical experts to slots. Value type; equal on all ranks of a group (checked when it is set). The trivial placement,
/// which a default-constructed one stands for, has one slot per expert in contiguous blocks: the first (num_experts mod
/// num_ranks) ranks hold one more. It takes no tables and costs nothing.
class EPISTLE_API Placement {
 public:
  /// Trivial, for any number of experts and ranks.
  Placement() = default;

  /// `slot_experts`: for every rank the logical experts of its slots, in slot order; a rank may have none. Throws
  /// kInvalidArgument where an expert of [0, num_experts) has no slot or no quota, an id is out of range, a rank holds
  /// an expert twice, or `choice` is not one for these slots.
  Placement(std::int32_t num_experts, const std::vector<std::vector<std::int32_t>>& slot_experts,
            std::uint64_t generation = 0, const ReplicaChoice& choice = {});

  /// True for the default: no tables, any number of experts and ranks.
  [[nodiscard]] bool is_trivial() const noexcept { return slot_begin_.empty(); }
  /// Counts placements of a dispatcher; a newer one is greater.
  [[nodiscard]] std::uint64_t generation() const noexcept { return generation_; }

  // What follows is of a placement that is not trivial.

  [[nodiscard]] std::int32_t num_experts() const noexcept {
    return static_cast<std::int32_t>(replica_begin_.size()) - 1;
  }
  [[nodiscard]] std::int32_t num_ranks() const noexcept { return static_cast<std::int32_t>(slot_begin_.size()) - 1; }
  /// Slots of all ranks together.
  [[nodiscard]] std::int32_t num_slots() const noexcept { return slot_begin_.back(); }
  /// Experts of a rank's slots, in slot order.
  [[nodiscard]] std::span<const std::int32_t> experts_of(std::int32_t rank) const;
  /// Where an expert's copies are, by rank.
  [[nodiscard]] std::span<const SlotRef> replicas_of(std::int32_t expert) const;
  /// Most slots of any rank.
  [[nodiscard]] std::int32_t max_slots_per_rank() const noexcept;
  [[nodiscard]] const ReplicaChoice& choice() const noexcept { return choice_; }

  friend bool operator==(const Placement&, const Placement&) = default;

 private:
  std::uint64_t generation_ = 0;
  std::vector<std::int32_t> slot_begin_;     ///< [num_ranks + 1] into slot_experts_
  std::vector<std::int32_t> slot_experts_;   ///< [num_slots]
  std::vector<std::int32_t> replica_begin_;  ///< [num_experts + 1] into replicas_
  std::vector<SlotRef> replicas_;            ///< [num_slots]
  ReplicaChoice choice_;
};

}  // namespace epistle
