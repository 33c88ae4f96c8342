// What the dispatchers of the CUDA device have in common: memory that all ranks address, prepare, handles, checks of
// what the caller gives and of what the device finds. How rows travel is left to the class that derives from this one.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <cuda_runtime_api.h>

#include "epistle/cuda.hpp"

#include "dispatch/call/call_checks.hpp"
#include "dispatch/cuda/engine/call_names.hpp"
#include "dispatch/cuda/engine/cuda_handle.hpp"
#include "dispatch/cuda/engine/device_buffers.hpp"
#include "dispatch/cuda/engine/launch.hpp"
#include "dispatch/cuda/engine/tuning.hpp"
#include "gpu/cuda_error.hpp"
#include "gpu/heap/symmetric_heap.hpp"
#include "group/group_impl.hpp"

namespace epistle::cuda {

/// The tile of prepare on `device`. Throws kUnsupported where ranks, experts and top_k are more than it can hold.
[[nodiscard]] PrepareTile choose_tile_for(const DispatcherConfig& config, int num_ranks, int device);

class CudaCollective : public CudaDispatcher {
 public:
  ~CudaCollective() override;
  CudaCollective(const CudaCollective&) = delete;
  CudaCollective& operator=(const CudaCollective&) = delete;

  [[nodiscard]] const DispatcherConfig& config() const noexcept final { return config_; }
  [[nodiscard]] const DispatchLayout& layout() const noexcept final { return layout_; }
  [[nodiscard]] std::int64_t buffer_bytes() const noexcept final { return layout_.buffer_bytes(committed()); }
  [[nodiscard]] std::int64_t resident_bytes() const final { return heap_.resident_bytes(); }
  [[nodiscard]] WireBytes wire_bytes(const Handle& handle) const override;

  [[nodiscard]] Handle prepare(const RoutingView& routing) final;
  void dispatch_send(const Handle& handle, const Payload& payload) final;
  const DispatchOutput& dispatch_receive(const Handle& handle) final;
  const DispatchOutput& dispatch(const Handle& handle, const Payload& payload) final;
  [[nodiscard]] Handle prepare_and_dispatch(const RoutingView& routing, const Payload& payload) final;
  void combine_send(const Handle& handle, const void* rows) final;
  void combine_receive(const Handle& handle, void* out, std::int64_t out_bytes) final;
  void combine(const Handle& handle, const void* rows, void* out, std::int64_t out_bytes) final;
  void dispatch_backward(const Handle& handle, const void* grad_rows, const float* grad_weights, void* grad_out,
                         std::int64_t grad_out_bytes, float* grad_topk_weights) final;
  const std::byte* combine_backward(const Handle& handle, const void* grad_out, const void* saved_rows,
                                    float* grad_weights) final;

  void set_stream(CudaStream stream) final;
  [[nodiscard]] CudaStream stream() const noexcept final { return stream_; }
  void set_num_sms(int num_sms) final;
  [[nodiscard]] int device() const noexcept final { return device_; }
  void synchronize() final;
  [[nodiscard]] std::string describe_tuning(std::int64_t num_tokens) const final;

 protected:
  /// Collective. `config` must be resolved and agreed upon.
  CudaCollective(Group& group, const DispatcherConfig& config, const CudaOptions& options, int device,
                 Transport transport = Transport::kDevice);

  /// The first step of every call: throws what the device has found, or returns it for announce_call() to tell.
  [[nodiscard]] virtual Complaint begin_call();
  /// The last step before rows move (before counts are exchanged, in prepare), the one where ranks learn what the
  /// others have to say. Throws `complaint`, this rank's own. Kernels that wait for each other tell each other; here
  /// only a rank that refuses has something to do. `handle` may be null.
  /// Returns the call as far as the ranks are known to have agreed on it.
  virtual DeviceCall announce_call(DeviceCall call, const CudaHandleState* handle, const Complaint& complaint);
  /// Collective, under exact sizing: what the rows of a prepared routing need, by rank; the same on all ranks.
  [[nodiscard]] virtual std::vector<RowDemand> demands_of(CudaHandleState& handle);
  /// Ends what moves rows without looking at the abort flag of the device; returns the phase it was in, kNone where
  /// there was nothing to end.
  virtual Phase abandon_transport() noexcept { return Phase::kNone; }

  /// Puts the move or the sum on the stream; `args` is complete but for the tuning.
  virtual void start_move(const CudaHandleState& handle, MoveArgs& args) = 0;
  virtual void start_sum(const CudaHandleState& handle, SumArgs& args) = 0;
  /// True when start_move can put a kernel behind prepare that starts before that has ended (MoveArgs::behind_prepare).
  [[nodiscard]] virtual bool can_follow_closely() const noexcept { return false; }

  [[nodiscard]] bool shares_gpu() const noexcept { return shares_gpu_; }
  [[nodiscard]] bool has_bulk_copies() const noexcept { return compute_major_ >= kFirstMajorWithBulkCopies; }
  [[nodiscard]] int rank() const noexcept { return group_->rank(); }
  [[nodiscard]] int num_ranks() const noexcept { return group_->num_ranks(); }
  [[nodiscard]] TuningQuery tuning_query(TunedCall call, std::int64_t num_tokens) const noexcept;
  [[nodiscard]] std::byte* own_section(BufferSection section) const noexcept {
    return heap_.base(rank()) + layout_.section_offset(section);
  }
  [[nodiscard]] GroupImpl& group() const noexcept { return *group_; }
  [[nodiscard]] const DeviceGroup& device_group() const noexcept { return device_group_; }
  /// An event behind everything that the calls so far have put on the stream. Recorded when it is asked for: a record
  /// behind every call would be a part of that call's time.
  [[nodiscard]] cudaEvent_t last_work();
  [[nodiscard]] bool is_capturing() const;
  [[nodiscard]] CallChecks checks() const noexcept { return {rank(), config_, layout_.params()}; }
  [[nodiscard]] Error complain(ErrorCode code, Phase phase, const std::string& message) const {
    return checks().complain(code, phase, message);
  }
  /// Throws what earlier calls have found; does not wait.
  void check_findings();
  /// Waits until the counts of every handle are known, under capacity sizing too; the same handles on all ranks.
  void finish_handles();

 private:
  struct DestroyEvent {
    void operator()(cudaEvent_t event) const noexcept { warn_cuda(cudaEventDestroy(event), "destroying an event"); }
  };
  enum class Call : std::int32_t { kNone, kDispatch, kCombine };

  // cuda_collective.cpp: memory, prepare, findings
  [[nodiscard]] RowDemand committed() const noexcept { return demands_[static_cast<std::size_t>(rank())]; }
  void grow(const std::vector<RowDemand>& demands);
  void take_own_memory();
  [[nodiscard]] std::shared_ptr<CudaHandleState> find_free_handle() const;
  [[nodiscard]] std::shared_ptr<CudaHandleState> acquire_handle();
  [[nodiscard]] Complaint check_routing(const RoutingView& routing) const;
  void launch(CudaHandleState& state, const RoutingView& routing);
  void wait_for_summary(CudaHandleState& state);
  void check_summary(CudaHandleState& state);
  template <typename IsDone>
  void wait_on_host(const CudaHandleState* state, const IsDone& is_done);
  [[noreturn]] void throw_finding(const Report& report, const CudaHandleState* state);
  void throw_disagreement();
  void stop_for_lost_rank(int lost, const CudaHandleState* state);

  // cuda_calls.cpp: dispatch, combine, backward
  [[nodiscard]] CudaHandleState* own_state(const Handle& handle, Phase phase, Complaint& complaint) const;
  [[nodiscard]] MoveArgs move_args(std::uint32_t phases) const;
  [[nodiscard]] SumArgs sum_args(std::uint32_t phases) const;
  /// Tells the peers, then throws. `behind`: see MoveArgs::skips_void.
  [[noreturn]] void refuse(DeviceCall call, const Error& complaint, const HandleTotals* behind = nullptr);
  void move(CudaHandleState& state, const Payload& payload, std::uint32_t phases);
  /// Rows that nobody sums before they travel are read where they lie.
  [[nodiscard]] bool pulls_rows() const noexcept {
    return layout_.params().transport == Transport::kDevice && !layout_.returns_partial_sums();
  }
  void share_rows(const CudaHandleState& state, const void* rows);
  struct SumCall;
  void sum(CudaHandleState& state, const SumCall& call);
  [[nodiscard]] const DispatchOutput& point_at_rows(CudaHandleState& state) const;
  void gather_weight_gradients(const CudaHandleState& state, DeviceCall call, const float* grad_weights,
                               float* grad_topk_weights);
  void open(Call call, CudaHandleState& state, const void* rows) noexcept;
  void check_call_open(Call call, const Handle& handle) const;
  void end_open_call();
  [[nodiscard]] static std::string_view name_of(Call call) noexcept;

  DispatcherConfig config_;
  int device_;
  std::shared_ptr<GroupImpl> group_owner_;
  GroupImpl* group_;
  CudaOptions options_;
  DeviceControl control_;
  DispatchLayout layout_;
  int sm_share_ = 1;         ///< SMs that this rank may use at most
  bool shares_gpu_ = false;  ///< some ranks of the group share one
  SymmetricHeap heap_;       ///< behind what its size follows from
  PinnedMemory host_control_;
  DeviceBuffer local_memory_;
  DeviceGroup device_group_;
  std::vector<RowDemand> demands_;  ///< committed so far, by rank
  std::vector<std::shared_ptr<CudaHandleState>> handles_;
  CudaStream stream_ = nullptr;
  std::unique_ptr<CUevent_st, DestroyEvent> last_work_;
  int compute_major_ = 0;
  PrepareTile prepare_tile_;
  std::uint64_t dispatcher_id_;
  std::uint64_t num_prepared_ = 0;
  Call open_call_ = Call::kNone;
  CudaHandleState* open_state_ = nullptr;
  const void* open_rows_ = nullptr;
  std::uint32_t num_send_halves_ = 0;  ///< so far; the number of the open one
  /// What prepare does for prepare_and_dispatch.
  enum class Follows : std::int32_t { kNothing, kDispatch, kDispatchClosely };
  Follows follows_ = Follows::kNothing;
  int prepare_blocks_ = 0;  ///< of the last prepare
};

}  // namespace epistle::cuda
