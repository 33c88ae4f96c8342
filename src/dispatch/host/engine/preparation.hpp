// prepare on the host: counts are exchanged, every row gets its place, and every receiver a record of it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "epistle/dispatcher.hpp"

#include "core/complaint.hpp"
#include "dispatch/call/placed_experts.hpp"
#include "dispatch/host/engine/host_context.hpp"
#include "dispatch/host/engine/published_routing.hpp"
#include "dispatch/host/engine/received_rows.hpp"
#include "dispatch/host/engine/row_mover.hpp"
#include "dispatch/host/engine/token_places.hpp"
#include "layout/layout_tables.hpp"

namespace epistle::host {

class Preparation {
 public:
  Preparation(HostContext& context, RowMover& mover);

  /// Routings that are read from now on are of this placement; to be set between two calls.
  void place_experts(PlacedExperts placed) { placed_ = std::move(placed); }
  void share_batch(const BatchQuotasRequest& request) { placed_.share_batch(request); }
  [[nodiscard]] const PlacedExperts& placed() const noexcept { return placed_; }
  /// See Dispatcher::expert_tokens(); from any thread.
  [[nodiscard]] std::vector<std::int64_t> expert_tokens() const;
  /// See Dispatcher::lost_tokens(); likewise.
  [[nodiscard]] std::vector<std::int64_t> lost_tokens() const;

  /// Copies the routing into the handle and counts; the request was checked but for its ids. Where the mover publishes,
  /// so is the routing, and the handle has room for whatever the others may say.
  [[nodiscard]] Complaint read(const PrepareRequest& request, HostHandle& state);
  /// Collective, behind `call`, on which all ranks have agreed when all had counted.
  void finish(HostHandle& state, const Call& call);

 private:
  [[nodiscard]] int rank() const noexcept { return context_->rank; }
  [[nodiscard]] int num_ranks() const noexcept { return context_->num_ranks; }
  [[nodiscard]] std::byte* section(int rank, BufferSection wanted) const noexcept {
    return context_->memory.section(rank, wanted);
  }

  /// `slot_of(expert, token)`: whose rows they become.
  template <typename Id, typename SlotOf>
  [[nodiscard]] Complaint read_tokens(const IdsView& ids, HostHandle& state, const SlotOf& slot_of);
  template <typename Id>
  [[nodiscard]] Complaint read_ids(const PrepareRequest& request, HostHandle& state);
  void count_expert_tokens(const HostHandle& state) noexcept;
  void gather_counts(const HostHandle& state);
  void ask_for_lines(const HostHandle& state) const;
  [[nodiscard]] std::int32_t domain_pairs_of(int source, int domain) const noexcept;
  void keep_domain_pairs(HostHandle& state);
  [[nodiscard]] PairRun sent_run(int domain) const;
  void list_passed_runs(std::vector<PairRun>& runs) const;
  void count_domain_pairs(const HostHandle& state, std::int32_t* pairs) const;
  void plan(HostHandle& state);
  [[nodiscard]] const std::int32_t* told_by(const HostHandle& state, int peer) const noexcept;
  [[nodiscard]] CountsView<std::int32_t> own_counts(const HostHandle& state) const noexcept;
  void check_capacity(const HostHandle& state) const;
  /// Whether the second round of counts is told at all: else it follows from the first that everything fits. Over links
  /// all counts go as one.
  [[nodiscard]] bool tells_of_drops(const HostHandle& state) const noexcept {
    return state.tables.has_overflow() || context_->plan.uses_links();
  }
  [[nodiscard]] RowDemand demand_of(const HostHandle& state, int rank) const;
  struct HandleSizes {
    std::int64_t num_tokens;
    std::int64_t num_rows;
    std::int64_t num_pairs;
  };
  void reserve_handle(HostHandle& state, const HandleSizes& sizes) const;
  void place_rows(HostHandle& state);
  void exchange_records(HostHandle& state, const Call& call);

  HostContext* context_;
  RowMover* mover_;
  const DispatchLayout& layout_;
  const ResolvedConfig& config_;
  PublishedRouting published_;
  TokenPlaces places_;
  ReceivedRows received_;
  PlacedExperts placed_;
  std::vector<std::atomic<std::int64_t>> expert_tokens_;  ///< [num_experts], logical
  std::vector<std::atomic<std::int64_t>> lost_tokens_;    ///< likewise
  std::vector<RowDemand> wanted_;                         ///< [num_ranks] by the call under way
  // Scratch, sized once.
  std::vector<ConstCountsView> count_views_;
  std::vector<std::int64_t> last_token_of_expert_;
  std::vector<std::int64_t> last_token_to_rank_;
  std::vector<std::int32_t> lost_of_expert_;     ///< [num_experts] of the routing that was read last
  std::vector<std::int32_t> pairs_to_rank_;      ///< [num_ranks] of this rank's tokens: see PlaceCounts
  std::vector<std::int32_t> dropped_of_expert_;  ///< [num_experts of the layout] likewise
  std::vector<std::int32_t> counts_of_nobody_;   ///< what a rank that is masked out has told
  std::vector<std::int32_t> own_announcement_;   ///< counts, then tokens for each domain; where domains are crossed
  std::vector<std::int32_t> all_announcements_;  ///< [num_ranks] of them
  std::vector<std::int64_t> passed_on_;          ///< [num_ranks] pairs that each passes on; likewise
};

}  // namespace epistle::host
