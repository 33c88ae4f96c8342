// Every dispatcher on the host: checking inputs, agreeing on every call before anybody looks at a byte of it, and the
// steps of each call. How rows travel in a step is the mover's.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dispatch/call/call_checks.hpp"
#include "dispatch/call/dispatcher_impl.hpp"
#include "dispatch/host/engine/host_context.hpp"
#include "dispatch/host/engine/preparation.hpp"
#include "dispatch/host/engine/row_mover.hpp"
#include "group/group_impl.hpp"

namespace epistle::host {

/// Makes the mover of a dispatcher; the context outlives it.
using MakeMover = std::unique_ptr<RowMover> (*)(HostContext& context);

class HostEngine final : public DispatcherImpl {
 public:
  /// Collective. `config` must be agreed upon; the rules outlive the engine.
  HostEngine(std::shared_ptr<GroupImpl> group, DispatcherIdentity identity, const ResolvedConfig& config,
             const PlanRules& rules, const HostOptions& options, MakeMover make_mover);

  [[nodiscard]] Handle prepare(const PrepareRequest& request, Stream stream) override;
  [[nodiscard]] Received dispatch(const DispatchRequest& request, Stream stream) override;
  [[nodiscard]] Pending dispatch_send(const DispatchRequest& request, Stream stream) override;
  [[nodiscard]] Received dispatch_receive(Pending pending, Stream stream) override;
  void combine(const CombineRequest& request, Stream stream) override;
  [[nodiscard]] Pending combine_send(const CombineRequest& request, Stream stream) override;
  void combine_receive(Pending pending, Stream stream) override;
  void dispatch_backward(const DispatchBackwardRequest& request, Stream stream) override;
  [[nodiscard]] Received combine_backward(const CombineBackwardRequest& request, Stream stream) override;

  [[nodiscard]] bool owns(const HandleState& state) const noexcept override {
    return state.dispatcher_id == dispatcher_id_;
  }
  void set_placement(const Placement& placement, Stream stream) override;
  void set_batch_quotas(const BatchQuotasRequest& request, Stream stream) override;
  [[nodiscard]] const Placement& placement() const noexcept override { return preparation_.placed().placement(); }
  [[nodiscard]] std::vector<std::int64_t> expert_tokens() const override { return preparation_.expert_tokens(); }
  [[nodiscard]] std::vector<std::int64_t> lost_tokens() const override { return preparation_.lost_tokens(); }

  void wait() override { context_.group->check_usable(); }
  [[nodiscard]] Health poll() const noexcept override;
  [[nodiscard]] std::vector<int> suspects() const override;
  void abort() noexcept override { context_.group->abort(); }

  [[nodiscard]] WireBytes wire_bytes(const Handle& handle) const override;
  [[nodiscard]] std::int64_t network_bytes() const noexcept override { return mover_->network_bytes(); }
  [[nodiscard]] std::int64_t shared_bytes() const noexcept override { return context_.memory.committed_bytes(); }
  [[nodiscard]] std::int64_t resident_bytes() const override { return context_.memory.resident_bytes(); }
  [[nodiscard]] int device_ordinal() const noexcept override { return -1; }
  [[nodiscard]] std::string describe_tuning(std::int64_t num_tokens) const override;

 private:
  /// A send half whose receive half is still to come.
  struct OpenCall {
    Call announced;
    std::uint64_t number = 0;
    Ticket ticket = 0;            ///< of what was announced to be on its way
    bool brings_routing = false;  ///< sent with the rows, and without a place until all have sent
    std::shared_ptr<HostHandle> handle;
    std::shared_ptr<RowBuffer> buffer;
    MoveJob move;     ///< of dispatch
    SumRequest sums;  ///< of combine
  };

  /// Before anything else in a call that brings no rows: throws where the group has failed. Those that do look when
  /// they know what they are owed.
  void begin_call() {
    group_->check_usable();
    follow_mask();
  }
  /// Where the mask of the group has changed, makes anew what the ranks share.
  void follow_mask() {
    if (group_->mask_version() != mask_version_) [[unlikely]]
      renew();
  }
  void renew();
  [[nodiscard]] static std::uint64_t new_dispatcher_id() noexcept;
  [[nodiscard]] RowBufferPool make_buffers() const;
  /// Collective, where ranks may have been left out while a placement was set.
  void compare_placements();

  [[nodiscard]] CallChecks checks() const noexcept {
    return {context_.rank, context_.config, context_.layout().params(), identity()};
  }
  [[nodiscard]] Call call_of(CallKind kind, const HostHandle* state, const RowBuffer* buffer) const noexcept;
  [[nodiscard]] std::string_view open_call_name() const noexcept;
  /// The handle of a call where it is one of this dispatcher, otherwise a complaint.
  [[nodiscard]] std::shared_ptr<HostHandle> own_handle(const std::shared_ptr<HandleState>& state, Phase phase,
                                                       Complaint& complaint) const;
  /// Agrees on a call, and learns which buffer each rank uses in it.
  std::int64_t agree(const Call& call, Phase phase, const Complaint& complaint, const MissingRows& missing);
  enum class SendOrder : std::int32_t { kWhenAgreed, kAtOnce };
  struct Sending {
    const Call& call;
    Phase phase;
    const Complaint& complaint;
    SendOrder order;             ///< kAtOnce: agrees and sends in one step, and nobody is waited for here
    const MissingRows& missing;  ///< what the other ranks owe in the call
  };
  /// The first steps of a call: agrees on it and sends.
  template <typename Send>
  Ticket send(const Sending& sending, const Send& send_rows);
  /// How a call sends that writes into the buffers of others: at once where all have promised one.
  [[nodiscard]] SendOrder order_of_placing(const HostHandle& state);
  [[nodiscard]] std::shared_ptr<RowBuffer> promised_buffer() const;
  void tell_of_buffers(std::int32_t used);
  /// Once the step of `ticket` has passed, of which `state` is: which buffer each rank uses in it.
  void learn_of_buffers(const HostHandle& state, Ticket ticket);
  void ask_for_promises() const;
  /// Those of the last exchange.
  void learn_of_promises();
  /// Waits until all have sent; from here on all have agreed.
  void wait_for_all(const HostHandle& state, Ticket ticket, Phase phase, const MissingRows& missing);
  void close(Pending& pending, CallKind kind);

  [[nodiscard]] Complaint read_routing(const PrepareRequest& request, Stream stream,
                                       std::shared_ptr<HostHandle>& state);
  void finish_routing(HostHandle& state, const Call& call);

  OpenCall send_dispatch(const DispatchRequest& request, Stream stream);
  [[nodiscard]] Received receive_dispatch(OpenCall call);
  OpenCall send_combine(const CombineRequest& request, Stream stream);
  void receive_combine(const OpenCall& call);
  void receive_rows(const MoveJob& job);
  void stage_rows(const HostHandle& state, const ConstRows& rows, const RowBuffer& buffer);
  void zero_padding(const MoveJob& job) const;

  std::shared_ptr<GroupImpl> group_;
  HostContext context_;
  std::uint64_t number_;         ///< of this dispatcher in its group, equal on all ranks
  std::uint64_t dispatcher_id_;  ///< in this process; another one when memory was made anew
  std::uint64_t mask_version_;   ///< of the group, for which the memory was made
  /// The newest generation of placements that differ between ranks, which all have found; they route nothing then.
  std::optional<std::uint64_t> differing_generation_;
  std::unique_ptr<RowMover> mover_;
  Preparation preparation_;
  RowBufferPool buffers_;
  HandlePool<HostHandle> handles_;
  std::vector<RowDemand> wanted_;          ///< [num_ranks] by the call under way
  std::vector<std::int32_t> promised_of_;  ///< [num_ranks] buffers that the others may write into at once
  std::uint64_t last_handle_id_ = 0;       ///< of the last exchange
  std::uint64_t num_prepared_ = 0;
  std::uint64_t num_sent_ = 0;  ///< send halves
  OpenCall open_;
};

}  // namespace epistle::host
