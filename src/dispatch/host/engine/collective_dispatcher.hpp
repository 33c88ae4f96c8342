// What all dispatchers on a group with shared memory have in common: checking inputs, agreeing on every call before the
// first byte moves, exchanging counts, giving rows their places, committing buffers. How rows travel is left to the
// transport that derives from this class.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "epistle/dispatcher.hpp"

#include "dispatch/call/call_checks.hpp"
#include "dispatch/call/handle_state.hpp"
#include "group/group_impl.hpp"

namespace epistle {

/// Rows on their way from tokens to experts.
struct MoveJob {
  const HandleState* handle = nullptr;
  const std::byte* rows = nullptr;  ///< [num_tokens, row_bytes]
  const std::byte* scales = nullptr;
  std::int64_t row_bytes = 0;
  std::int64_t scale_bytes = 0;
  BufferSection target = BufferSection::kReceiveRows;
};

/// Rows on their way back, in the combine section of every rank.
struct SumRequest {
  const HandleState* handle = nullptr;
  bool weighted = false;
  std::byte* out = nullptr;  ///< [num_tokens, combine_row_bytes]
};

class CollectiveDispatcher : public Dispatcher {
 public:
  [[nodiscard]] const DispatcherConfig& config() const noexcept final { return config_; }
  [[nodiscard]] const DispatchLayout& layout() const noexcept final { return layout_; }
  [[nodiscard]] std::int64_t buffer_bytes() const noexcept final { return layout_.buffer_bytes(committed_); }
  [[nodiscard]] std::int64_t resident_bytes() const final { return region_.resident_bytes(); }

  [[nodiscard]] WireBytes wire_bytes(const Handle& handle) const final;

  [[nodiscard]] Handle prepare(const RoutingView& routing) final;
  void dispatch_send(const Handle& handle, const Payload& payload) final;
  const DispatchOutput& dispatch_receive(const Handle& handle) final;
  void combine_send(const Handle& handle, const void* rows) final;
  void combine_receive(const Handle& handle, void* out, std::int64_t out_bytes) final;
  void combine(const Handle& handle, const void* rows, void* out, std::int64_t out_bytes) final;
  void dispatch_backward(const Handle& handle, const void* grad_rows, const float* grad_weights, void* grad_out,
                         std::int64_t grad_out_bytes, float* grad_topk_weights) final;
  const std::byte* combine_backward(const Handle& handle, const void* grad_out, const void* saved_rows,
                                    float* grad_weights) final;

 protected:
  /// Collective. `config` must be resolved and agreed upon.
  CollectiveDispatcher(Group& group, const DispatcherConfig& config, Transport transport);

  // ---- The transport ------------------------------------------------------------------------------------------------

  /// Makes room in `handle` for what plan_transport puts there, when the counts are known.
  virtual void reserve_transport(HandleState& handle) { static_cast<void>(handle); }
  /// Fills in what the transport keeps per handle, when everything else in it is known. All ranks have agreed on the
  /// handle: it may not fail.
  virtual void plan_transport(HandleState& handle) = 0;
  /// Puts this rank's rows on their way. Nobody else touches this rank's send and stage sections.
  virtual void send_rows(const MoveJob& job) = 0;
  /// All ranks have sent: completes this rank's output rows except padding.
  virtual void receive_rows(const MoveJob& job) = 0;
  /// All expert outputs of this rank are in its combine section; the other ranks may not be ready.
  virtual void send_sums(const SumRequest& request) = 0;
  /// All ranks have called send_sums: sums this rank's tokens.
  virtual void receive_sums(const SumRequest& request) = 0;
  /// Copies `num_rows` rows of the combine type from the caller's memory.
  virtual void copy_rows(const std::byte* source, std::byte* target, std::int64_t num_rows) = 0;
  /// Gradients of the weights (unless `grad_weights` is null) from saved and gradient rows, then every gradient row
  /// times its weight, in place.
  virtual void apply_row_weights(const HandleState& handle, const std::byte* saved_rows, std::byte* grad_rows,
                                 float* grad_weights) = 0;

  // ---- For transports -----------------------------------------------------------------------------------------------

  [[nodiscard]] int rank() const noexcept { return group_->rank(); }
  [[nodiscard]] int num_ranks() const noexcept { return group_->num_ranks(); }
  /// A section of a rank's buffers, as this process sees it.
  [[nodiscard]] std::byte* section(int rank, BufferSection section) const noexcept {
    return region_.base(rank) + section_offsets_[static_cast<std::size_t>(section)];
  }
  /// The rank that holds the expert of an entry of the handle's table; the entry must have one.
  [[nodiscard]] std::int32_t rank_of_entry(const HandleState& handle, std::size_t entry) const noexcept {
    return rank_of_expert_[static_cast<std::size_t>(handle.expert_ids[entry])];
  }
  [[nodiscard]] std::byte* own_section(BufferSection wanted) const noexcept { return section(rank(), wanted); }

 private:
  // collective_dispatcher.cpp: calls and agreement
  [[nodiscard]] Call call_of(CallKind kind, const HandleState* state, std::int64_t value = kAnyValue) const noexcept {
    return {.kind = kind, .subject = number_, .detail = state != nullptr ? state->handle_id : 0, .value = value};
  }
  [[nodiscard]] HandleState* own_state(const Handle& handle, Phase phase, Complaint& complaint) const;
  void check_call_open(CallKind call, const Handle& handle) const;
  [[nodiscard]] CallChecks checks() const noexcept { return {rank(), config_, layout_.params()}; }
  [[nodiscard]] Error complain(ErrorCode code, Phase phase, const std::string& message) const {
    return checks().complain(code, phase, message);
  }
  void commit(const RowDemand& demand);
  /// Collective: commits what every rank of `demands` needs more than it has. Costs nothing where no rank does.
  void grow(const std::vector<RowDemand>& demands, const Call& call, Phase phase);
  void start_combine(const HandleState& state, const void* rows);
  /// The end of a call whose results were read from the peers: nobody may write new rows while one still reads.
  void finish_combine(const HandleState& state, void* out, const Complaint& complaint);
  void stage_combine_rows(const HandleState& state, const void* rows);
  void zero_padding(const HandleState& state, BufferSection target, std::int64_t row_bytes) const;
  void finish_move(const MoveJob& job);
  void gather_weight_gradients(const HandleState& state, float* grad_topk_weights) const;

  // prepare.cpp: routing to places
  void plan(HandleState& state);
  [[nodiscard]] Complaint read_routing(const RoutingView& routing, HandleState& state);
  template <typename Id>
  [[nodiscard]] Complaint read_tokens(const RoutingView& routing, HandleState& state);
  [[nodiscard]] CountsView<std::int32_t> own_counts(const HandleState& state) const noexcept;
  void check_capacity(const HandleState& state) const;
  [[nodiscard]] RowDemand demand_of(const HandleState& state, int rank) const;
  void reserve_handle(HandleState& state);
  void place_rows(HandleState& state);
  void write_token_records(const HandleState& state);
  void write_row_records(const HandleState& state);
  void read_token_records(HandleState& state) const;
  void read_row_records(HandleState& state) const;
  void finish_counts(HandleState& state);

  DispatcherConfig config_;
  DispatchLayout layout_;
  std::shared_ptr<GroupImpl> group_owner_;
  GroupImpl* group_;
  std::array<std::int64_t, kNumBufferSections> section_offsets_;
  SymmetricRegion region_;
  std::uint64_t number_;  ///< of this dispatcher in its group, equal on all ranks
  RowDemand committed_;
  bool control_committed_ = false;
  std::vector<RowDemand> demands_;  ///< [num_ranks] that all ranks have agreed to be committed
  std::vector<RowDemand> wanted_;   ///< [num_ranks] by the call under way
  std::uint64_t dispatcher_id_;     ///< in this process
  std::uint64_t num_prepared_ = 0;  ///< its last bit chooses the counts slot
  HandlePool handles_;
  CallKind open_call_ = CallKind::kNone;  ///< a send half whose receive half is still to come
  Ticket open_ticket_ = 0;                ///< of what it has announced to be on its way
  const HandleState* open_state_ = nullptr;
  MoveJob open_move_;
  // Scratch of prepare, sized once.
  std::vector<ConstCountsView> count_views_;
  std::vector<std::int32_t> rank_of_expert_;
  std::vector<std::int64_t> last_token_of_expert_;
  std::vector<std::int64_t> last_token_to_rank_;
  std::vector<std::int32_t> num_placed_;  ///< [columns] rows placed so far
  std::vector<std::int32_t>
      send_of_rank_;                    ///< [num_ranks] entry of `sends`, -1 = dropped; valid for last_token_to_rank_
  std::vector<std::int32_t> next_row_;  ///< [num_ranks] likewise
  std::vector<std::int32_t> rank_of_position_;  ///< [top_k] of one token; -1 = none
};

}  // namespace epistle
