// A placement in force: tables that lead from the experts that tokens name to the slots that serve them. The same on
// every device.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "epistle/dispatcher.hpp"
#include "epistle/error.hpp"
#include "epistle/placement.hpp"

#include "core/complaint.hpp"
#include "dispatch/call/resolved_config.hpp"
#include "group/group_impl.hpp"
#include "layout/batch_shares.hpp"
#include "layout/replica_hash.hpp"

namespace epistle {

class PlacedExperts {
 public:
  /// Experts are not placed.
  PlacedExperts() = default;
  /// `placement` fits `config` (see misfit()).
  PlacedExperts(Placement placement, const ResolvedConfig& config, int num_ranks, int rank);

  [[nodiscard]] const Placement& placement() const noexcept { return placement_; }
  [[nodiscard]] bool is_trivial() const noexcept { return placement_.is_trivial(); }
  [[nodiscard]] std::uint64_t generation() const noexcept { return placement_.generation(); }

  // What follows is of experts that are placed. Slots are numbered as columns of the layout (ResolvedConfig).

  /// [num_ranks] slots in use.
  [[nodiscard]] std::span<const std::int32_t> slots_of_rank() const noexcept { return slots_of_rank_; }
  /// [num_columns] -1 where the placement has no such slot.
  [[nodiscard]] std::span<const std::int32_t> expert_of_slot() const noexcept { return expert_of_slot_; }
  /// [num_experts + 1] into entries().
  [[nodiscard]] std::span<const std::int32_t> replica_begin() const noexcept { return replica_begin_; }
  [[nodiscard]] std::span<const ReplicaEntry> entries() const noexcept { return entries_; }
  [[nodiscard]] const ReplicaPolicy& policy() const noexcept { return policy_; }

  /// Dispatcher::set_batch_quotas() on the host; refuse_batch_quotas() has found nothing.
  void share_batch(const BatchQuotasRequest& request);

  /// For this rank's tokens in one call. Refers to this object.
  [[nodiscard]] SlotChooser chooser(std::uint64_t step_seed) const noexcept {
    return {{replica_begin_.data(), entries_.data()}, &policy_, rank_, first_position_, step_seed};
  }

 private:
  Placement placement_;
  int rank_ = 0;
  std::int64_t first_position_ = 0;
  ReplicaPolicy policy_;
  std::vector<std::int32_t> slots_of_rank_;
  std::vector<std::int32_t> expert_of_slot_;
  std::vector<std::int32_t> replica_begin_;
  std::vector<ReplicaEntry> entries_;
  std::optional<BatchShares> batch_shares_;  ///< made when the first batch is shared out
};

/// Why quotas for a batch cannot be set with these experts in force.
[[nodiscard]] Complaint refuse_batch_quotas(const BatchQuotasRequest& request, const PlacedExperts& placed);

/// The first position (see dispatcher.hpp) of a rank's tokens.
[[nodiscard]] inline std::int64_t first_position(std::int64_t max_tokens, int rank) noexcept {
  return max_tokens * rank;
}

/// The trivial placement, written out.
[[nodiscard]] Placement blocks_of_experts(std::int32_t num_experts, int num_ranks);

/// Why a dispatcher of this configuration cannot take `placement`, which is not trivial.
[[nodiscard]] Complaint misfit(const Placement& placement, const ResolvedConfig& config, int num_ranks);

/// Of everything that makes tokens go elsewhere; the generation left out. 0 for the trivial one.
[[nodiscard]] std::uint64_t fingerprint(const Placement& placement);

/// What a placement is to follow.
struct PlacementChange {
  const ResolvedConfig& config;
  std::uint64_t generation;  ///< of the one in force
  const Placement& next;
  std::uint64_t dispatcher = 0;  ///< its number, equal on all ranks
};
/// Collective, the step of Dispatcher::set_placement() in which the ranks agree: throws as that does. `complaint` is
/// this rank's own, found before.
void agree_on_placement(GroupImpl& group, const PlacementChange& change, const Complaint& complaint);

/// The complaint of every routing from then on, until a newer placement is set.
inline constexpr const char* kPlacementsDiffer =
    "ranks have different placements in force, since one of them was masked out while one was set; call set_placement "
    "with a newer one on all ranks";
/// Collective: the newest generation in force on any rank, where not all have the same placement.
[[nodiscard]] std::optional<std::uint64_t> newest_where_placements_differ(GroupImpl& group, const Placement& placement,
                                                                          std::uint64_t dispatcher);

}  // namespace epistle
