// Every dispatcher on a GPU: memory that all ranks address, prepare, handles, checks of what the caller gives and of
// what the device finds, and the steps of each call. How rows travel in a step is the transport's.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <cuda_runtime_api.h>

#include "epistle/cuda.hpp"

#include "dispatch/call/call_checks.hpp"
#include "dispatch/call/dispatcher_functions.hpp"
#include "dispatch/call/dispatcher_impl.hpp"
#include "dispatch/cuda/device/few_tokens.hpp"
#include "dispatch/cuda/engine/call_names.hpp"
#include "dispatch/cuda/engine/context.hpp"
#include "dispatch/cuda/engine/cuda_handle.hpp"
#include "dispatch/cuda/engine/device_buffers.hpp"
#include "dispatch/cuda/engine/device_experts.hpp"
#include "dispatch/cuda/engine/host_relay.hpp"
#include "dispatch/cuda/engine/launch.hpp"
#include "dispatch/cuda/engine/transport.hpp"
#include "gpu/event.hpp"
#include "gpu/stream.hpp"

namespace epistle::cuda {

/// The tile of prepare on `device`. Throws kUnsupported where ranks, experts and top_k are more than it can hold.
[[nodiscard]] PrepareTile choose_tile_for(const ResolvedConfig& config, int num_ranks, int device);

/// The GPU of this rank: ranks of a host take its GPUs in turn. Throws where there is none, or not this one.
[[nodiscard]] int choose_device(const CudaOptions& options, const GroupImpl& group);

class CudaEngine final : public DispatcherImpl {
 public:
  /// Collective. The rules outlive the engine.
  CudaEngine(const Creation& creation, const PlanRules& rules, MakeTransport make_transport);
  ~CudaEngine() override;
  CudaEngine(const CudaEngine&) = delete;
  CudaEngine& operator=(const CudaEngine&) = delete;

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
  void wait() override;
  [[nodiscard]] Health poll() const noexcept override;
  [[nodiscard]] std::vector<int> suspects() const override;
  void abort() noexcept override;

  [[nodiscard]] WireBytes wire_bytes(const Handle& handle) const override;
  [[nodiscard]] std::int64_t network_bytes() const noexcept override {
    return transport_->network_bytes() + (relay_ != nullptr ? relay_->sent_bytes() : 0);
  }
  [[nodiscard]] std::int64_t shared_bytes() const noexcept override {
    return context_.plan.buffer_bytes(demands_[static_cast<std::size_t>(context_.rank())]);
  }
  [[nodiscard]] std::int64_t resident_bytes() const override { return context_.heap->resident_bytes(); }
  void set_placement(const Placement& placement, Stream stream) override;
  void set_batch_quotas(const BatchQuotasRequest& request, Stream stream) override;
  [[nodiscard]] const Placement& placement() const noexcept override { return experts_->placed().placement(); }
  [[nodiscard]] std::vector<std::int64_t> expert_tokens() const override { return experts_->tokens(); }
  [[nodiscard]] std::vector<std::int64_t> lost_tokens() const override { return experts_->lost_tokens(); }
  [[nodiscard]] int device_ordinal() const noexcept override { return context_.device; }
  [[nodiscard]] std::string describe_tuning(std::int64_t num_tokens) const override;

 private:
  /// What prepare does for a dispatch with ids.
  enum class Follows : std::int32_t { kNothing, kDispatch, kDispatchClosely };
  /// A send half whose receive half is still to come.
  struct OpenCall {
    DeviceCall call = DeviceCall::kNone;
    std::shared_ptr<CudaHandleState> handle;
    std::shared_ptr<RowBuffer> buffer;
    const std::byte* rows = nullptr;
    Rows out;
    const float* weights = nullptr;              ///< of a combine that brings them
    bool as_rows_finish = false;                 ///< of a combine
    std::optional<DispatchRequest> routed = {};  ///< of a dispatch that is one call with its routing
  };
  struct SumCall;
  struct Move;

  /// What calls from before a change of the mask have used.
  struct FormerMemory {
    std::shared_ptr<SymmetricHeap> heap;
    DeviceBuffer local;
    std::vector<std::shared_ptr<CudaHandleState>> handles;
    bool graphs_know_it;

    [[nodiscard]] bool is_used() const noexcept;
  };

  // cuda_engine.cpp: how it is made, placements, questions
  void set_up(const PlanRules& rules);

  // cuda_memory.cpp
  /// Collective: what the ranks share, and what this one needs to use it.
  void take_memory();
  void share_memory();
  void take_own_memory();
  void grow(const std::vector<RowDemand>& demands);

  // cuda_prepare.cpp
  /// Handles that nobody uses: the first of which nothing is to be found any more, otherwise the oldest.
  struct UnusedHandles {
    std::shared_ptr<CudaHandleState> settled;
    std::shared_ptr<CudaHandleState> oldest;
  };
  [[nodiscard]] UnusedHandles unused_handles() const;
  [[nodiscard]] std::shared_ptr<CudaHandleState> acquire_handle();
  [[nodiscard]] std::shared_ptr<CudaHandleState> prepare_for(const PrepareRequest& request, Follows follows,
                                                             const RowBuffer* follow_buffer);
  /// A handle for the routing of `request`, or this rank's own complaint.
  [[nodiscard]] std::shared_ptr<CudaHandleState> begin_routing(const PrepareRequest& request, Complaint& complaint);
  void start_routing(CudaHandleState& state, const PrepareRequest& request);
  [[nodiscard]] PrepareArgs routing_args(const CudaHandleState& state, const PrepareRequest& request) const;
  /// How prepare goes about so many tokens of this rank.
  struct PrepareChoice {
    PrepareLaunch launch;
    int tile_tokens;
    bool few;  ///< by the exchange for few tokens
  };
  [[nodiscard]] PrepareChoice choose_prepare(std::int64_t num_tokens) const;
  void launch(CudaHandleState& state, const PrepareRequest& request, Follows follows, const RowBuffer* follow_buffer);
  [[nodiscard]] std::vector<RowDemand> demands_of(CudaHandleState& handle);

  // cuda_masks.cpp: a change of the group's mask
  [[nodiscard]] bool is_behind_mask() const noexcept {
    return group_->mask_version() != mask_version_.load(std::memory_order_relaxed);
  }
  /// Where the mask of the group has changed, makes anew what the ranks share: collective then. Otherwise compares one
  /// number.
  void follow_mask() {
    if (is_behind_mask()) [[unlikely]]
      renew();
  }
  void renew();
  void check_can_renew() const;
  /// Ends what kernels of this rank still wait for, and forgets what they have found.
  void end_former_calls();
  void put_memory_away();
  [[nodiscard]] static std::uint64_t new_dispatcher_id() noexcept;
  void compare_placements();

  // cuda_findings.cpp: waiting on the host, errors
  [[nodiscard]] cudaEvent_t last_work();
  [[nodiscard]] bool is_capturing() const { return cuda::is_capturing(context_.stream); }
  void wait_for_summary(CudaHandleState& state);
  /// Until the device has found what there is to find in a routing, or has passed it.
  void wait_until_complete(CudaHandleState& state);
  void check_summary(CudaHandleState& state);
  /// Where no combine has told of routed dispatches (LineCombineArgs::passed_id): asks the device once for many.
  /// Whether there are handles now of which nothing is to be found any more.
  bool settle_passed();
  template <typename IsDone>
  void wait_on_host(const CudaHandleState* state, const IsDone& is_done);
  void fail_for_unmarked_rows(Phase phase);
  [[noreturn]] void throw_finding(const Report& report, const CudaHandleState* state);
  void throw_disagreement();
  void stop_for_lost_rank(int lost, const CudaHandleState* state);
  /// What the other ranks owe in a call of that phase; backward passes that turn it round are not told apart.
  [[nodiscard]] MissingRows rows_owed_in(Phase phase, const CudaHandleState* state) const;
  /// Throws what earlier calls have found; does not wait.
  void check_findings();

  // cuda_call_steps.cpp: what every call begins with
  [[nodiscard]] CallChecks checks() const noexcept {
    return {context_.rank(), context_.config, context_.layout().params(), identity()};
  }
  [[nodiscard]] Error complain(ErrorCode code, Phase phase, const std::string& message) const {
    return checks().complain(code, phase, message);
  }
  void use(Stream stream);
  /// The first step of every call: chooses stream and SMs, and throws what the device has found, or returns it for
  /// announce_call() to tell.
  [[nodiscard]] Complaint begin_call(Stream stream, int num_sms, Phase phase);
  /// The last step before rows move (before counts are exchanged, in prepare). Throws `complaint`, this rank's own.
  /// Kernels that wait for each other tell each other; otherwise all is settled here. `handle` may be null. Returns the
  /// call as far as the ranks are known to have agreed on it.
  DeviceCall announce_call(DeviceCall call, const CudaHandleState* handle, const Complaint& complaint);
  DeviceCall agree_on_host(DeviceCall call, const CudaHandleState* handle, const Complaint& complaint);
  [[nodiscard]] std::string_view open_call_name() const noexcept;
  [[nodiscard]] std::shared_ptr<CudaHandleState> own_handle(const std::shared_ptr<HandleState>& state, Phase phase,
                                                            Complaint& complaint) const;
  /// Tells the peers, then throws. `behind`: see MoveArgs::skips_void.
  [[noreturn]] void refuse(DeviceCall call, const Error& complaint, const HandleTotals* behind = nullptr);

  // cuda_calls.cpp: dispatch, combine; cuda_backward.cpp
  void close(Pending& pending, DeviceCall call);
  void end_open_call();
  [[nodiscard]] Received dispatch_with_ids(const DispatchRequest& request, Stream stream);
  [[nodiscard]] bool routes_rows() const noexcept {
    return context_.config.sizing == SizingMode::kCapacity && transport_->routes_rows();
  }
  [[nodiscard]] OpenCall begin_routed_dispatch(const DispatchRequest& request, Stream stream, std::uint32_t phases);
  void move_routed(const OpenCall& call, const DispatchRequest& request, std::uint32_t phases);
  [[nodiscard]] MoveArgs move_args(const OpenCall& call, const Move& what) const;
  [[nodiscard]] OpenCall begin_dispatch(const DispatchRequest& request, Stream stream);
  /// Puts what turns the caller's rows into those that travel on the stream, and has `args` take them from there.
  void quantise(MoveArgs& args, std::int64_t num_tokens);
  void move(const OpenCall& call, const Move& what);
  void receive(const OpenCall& call);
  [[nodiscard]] OpenCall begin_combine(const CombineRequest& request, Stream stream, std::uint32_t phases);
  /// Whether peers read this rank's rows where they lie.
  [[nodiscard]] bool pulls_rows() const noexcept {
    if (transport_->agrees_on_host()) return transport_->reads_peers_outputs();
    return !context_.plan.returns_partial_sums();
  }
  [[nodiscard]] const std::byte* share_rows(const CudaHandleState& state, const ConstRows& rows, bool pulled);
  void sum(const CudaHandleState& state, const SumCall& call);
  void gather_weight_gradients(const CudaHandleState& state, DeviceCall call, const DispatchBackwardRequest& request);

  std::shared_ptr<GroupImpl> group_;
  std::atomic<std::uint64_t> mask_version_;  ///< of the group, for which the memory was made
  EngineContext context_;
  PinnedMemory host_control_;
  DeviceBuffer local_memory_;
  std::unique_ptr<DeviceExperts> experts_;
  std::byte* quantised_rows_ = nullptr;  ///< [max_tokens, hidden] where rows become fp8 on their way, and their scales
  std::byte* quantised_scales_ = nullptr;
  std::vector<RowDemand> demands_;  ///< committed so far, by rank
  std::vector<std::shared_ptr<CudaHandleState>> handles_;
  RowBufferPool buffers_;
  Event last_work_;
  PrepareTile prepare_tile_;
  FewTokens few_tokens_;  ///< where in the control section
  std::uint64_t dispatcher_id_;
  std::uint64_t num_prepared_ = 0;
  std::shared_ptr<CudaHandleState> last_handle_;  ///< of the last call, for what the device finds in it
  OpenCall open_;
  std::uint32_t num_send_halves_ = 0;                  ///< so far; the number of the open one
  int prepare_blocks_ = 0;                             ///< of the last prepare
  std::optional<std::uint64_t> differing_generation_;  ///< the newest, where ranks have different placements
  bool was_captured_ = false;                          ///< graphs know the memory
  std::vector<FormerMemory> former_memory_;            ///< that leases, handles or graphs may still know
  std::unique_ptr<HostRelay> relay_;                   ///< of prepare, where ranks are on several hosts
  std::unique_ptr<RowTransport> transport_;            ///< goes before what it uses
};

}  // namespace epistle::cuda
