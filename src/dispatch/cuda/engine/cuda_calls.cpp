// CudaCollective: dispatch, combine and the backward passes. Every call checks what it was given, then either puts its
// kernel on the stream, or puts one there that tells the peers of the refusal, and throws.
#include <utility>

#include <fmt/format.h>

#include "dispatch/cuda/engine/cuda_collective.hpp"
#include "gpu/cuda_error.hpp"

namespace epistle::cuda {

/// What makes sums differ from one another.
struct CudaCollective::SumCall {
  DeviceCall call = DeviceCall::kCombine;
  const void* rows = nullptr;
  void* out = nullptr;
  std::uint32_t phases = kBothPhases;
  bool weighted = false;
  bool has_tokens = true;  ///< false: this rank takes part without tokens of its own
};

// ---- Checks ---------------------------------------------------------------------------------------------------------

CudaHandleState* CudaCollective::own_state(const Handle& handle, Phase phase, Complaint& complaint) const {
  if (complaint) return nullptr;
  auto* state = dynamic_cast<CudaHandleState*>(handle.state());
  const bool own = state != nullptr && state->dispatcher_id == dispatcher_id_;
  complaint = checks().handle(handle, own, name(), name_of(open_call_), phase);
  return complaint ? nullptr : state;
}

void CudaCollective::check_call_open(Call call, const Handle& handle) const {
  if (open_call_ == call && handle.state() == open_state_) return;
  throw checks().nothing_sent(name_of(call), call == Call::kDispatch ? Phase::kDispatch : Phase::kCombine);
}

std::string_view CudaCollective::name_of(Call call) noexcept {
  return call == Call::kNone ? std::string_view() : call == Call::kDispatch ? "dispatch" : "combine";
}

Complaint CudaCollective::begin_call() {
  check_findings();
  return std::nullopt;
}

DeviceCall CudaCollective::announce_call(DeviceCall call, const CudaHandleState* handle, const Complaint& complaint) {
  static_cast<void>(handle);
  if (complaint) refuse(call, *complaint);
  return call;
}

void CudaCollective::refuse(DeviceCall call, const Error& complaint, const HandleTotals* behind) {
  const RefuseArgs args{.group = device_group_, .phase = phase_of(call), .behind = behind};
  check_cuda(launch_refuse(args, stream_), "telling the peers of a refusal");
  throw Error(complaint);
}

void CudaCollective::open(Call call, CudaHandleState& state, const void* rows) noexcept {
  open_call_ = call;
  open_state_ = &state;
  open_rows_ = rows;
}

/// The receive half of a call whose send half has found that the ranks do not agree: nobody has to make it any more.
void CudaCollective::end_open_call() {
  const Call call = std::exchange(open_call_, Call::kNone);
  if (call == Call::kDispatch) {
    move(*open_state_, {.rows = open_rows_, .num_tokens = open_state_->stats.num_tokens}, kReceivePhase);
  } else {
    sum(*open_state_, {.rows = open_rows_, .phases = kReceivePhase});
  }
}

// ---- Dispatch -------------------------------------------------------------------------------------------------------

MoveArgs CudaCollective::move_args(std::uint32_t phases) const {
  MoveArgs args;
  args.group = device_group_;
  args.layout = layout_;
  args.phases = phases;
  args.send_half = (phases & kReceivePhase) == 0 ? num_send_halves_ : 0;
  args.zero_padding = config_.zero_padding;
  args.row_bytes = layout_.params().row_bytes;
  args.scale_bytes = layout_.params().scale_bytes;
  return args;
}

void CudaCollective::move(CudaHandleState& state, const Payload& payload, std::uint32_t phases) {
  MoveArgs args = move_args(phases);
  args.handle = state.arrays;
  args.rows = static_cast<const std::byte*>(payload.rows);
  args.scales = static_cast<const std::byte*>(payload.scales);
  args.behind_prepare = follows_ == Follows::kDispatchClosely;
  args.skips_void = follows_ != Follows::kNothing;
  args.prepare_blocks = prepare_blocks_;
  start_move(state, args);
}

const DispatchOutput& CudaCollective::point_at_rows(CudaHandleState& state) const {
  state.output.rows = own_section(BufferSection::kReceiveRows);
  state.output.scales = layout_.params().scale_bytes > 0 ? own_section(BufferSection::kReceiveScales) : nullptr;
  return state.output;
}

void CudaCollective::dispatch_send(const Handle& handle, const Payload& payload) {
  const DeviceGuard guard(device_);
  Complaint complaint = begin_call();
  CudaHandleState* state = own_state(handle, Phase::kDispatch, complaint);
  if (state != nullptr) complaint = checks().payload(state->stats.num_tokens, payload);
  announce_call(DeviceCall::kDispatch, state, complaint);
  ++num_send_halves_;
  move(*state, payload, kSendPhase);
  open(Call::kDispatch, *state, payload.rows);
}

const DispatchOutput& CudaCollective::dispatch_receive(const Handle& handle) {
  check_call_open(Call::kDispatch, handle);
  const DeviceGuard guard(device_);
  open_call_ = Call::kNone;
  CudaHandleState& state = *open_state_;
  move(state, {.rows = open_rows_, .num_tokens = state.stats.num_tokens}, kReceivePhase);
  return point_at_rows(state);
}

const DispatchOutput& CudaCollective::dispatch(const Handle& handle, const Payload& payload) {
  const DeviceGuard guard(device_);
  Complaint complaint = begin_call();
  CudaHandleState* state = own_state(handle, Phase::kDispatch, complaint);
  if (state != nullptr) complaint = checks().payload(state->stats.num_tokens, payload);
  announce_call(DeviceCall::kDispatch, state, complaint);
  open_state_ = state;
  move(*state, payload, kBothPhases);
  return point_at_rows(*state);
}

Handle CudaCollective::prepare_and_dispatch(const RoutingView& routing, const Payload& payload) {
  struct Following {
    Following(Follows& which, Follows value) : follows(which) { follows = value; }
    ~Following() { follows = Follows::kNothing; }
    Following(const Following&) = delete;
    Following& operator=(const Following&) = delete;
    Follows& follows;
  };
  // Under exact sizing the host has to see the counts in between.
  const bool is_async = config_.sizing == Sizing::kCapacity && layout_.params().transport == Transport::kDevice;
  if (!is_async) {
    const Following following(follows_, Follows::kDispatch);
    Handle handle = prepare(routing);
    follows_ = Follows::kNothing;
    static_cast<void>(dispatch(handle, payload));
    return handle;
  }
  const DeviceGuard guard(device_);
  // What the peers may rely on is announced by prepare already.
  const Complaint complaint = checks().payload(routing.num_tokens, payload);
  const bool closely = can_follow_closely() && !complaint;
  const Following following(follows_, closely ? Follows::kDispatchClosely : Follows::kDispatch);
  Handle handle = prepare(routing);
  auto* state = static_cast<CudaHandleState*>(handle.state());
  // Where the routing turns out to be void there is no dispatch, on no rank: the host must not look at findings here.
  if (complaint) {
    state->checked = true;  // what prepare finds has nothing to add
    refuse(DeviceCall::kDispatch, *complaint, state->arrays.totals);
  }
  open_state_ = state;
  move(*state, payload, kBothPhases);
  static_cast<void>(point_at_rows(*state));
  return handle;
}

// ---- Combine --------------------------------------------------------------------------------------------------------

SumArgs CudaCollective::sum_args(std::uint32_t phases) const {
  SumArgs args;
  args.group = device_group_;
  args.layout = layout_;
  args.phases = phases;
  args.send_half = (phases & kReceivePhase) == 0 ? num_send_halves_ : 0;
  args.dtype = config_.combine_dtype;
  args.pull = pulls_rows();
  return args;
}

void CudaCollective::sum(CudaHandleState& state, const SumCall& call) {
  SumArgs args = sum_args(call.phases);
  args.call = call.call;
  args.handle = state.arrays;
  if (!call.has_tokens) args.handle.num_tokens = 0;
  args.rows = static_cast<const std::byte*>(call.rows);
  args.out = static_cast<std::byte*>(call.out);
  args.weighted = call.weighted;
  start_sum(state, args);
}

/// Before anything announces the call: from then on peers may read the rows.
void CudaCollective::share_rows(const CudaHandleState& state, const void* rows) {
  std::byte* shared_rows = own_section(BufferSection::kCombineRows);
  if (!pulls_rows() || rows == shared_rows || state.output.num_rows == 0) return;
  const auto num_bytes = static_cast<std::size_t>(state.output.num_rows * layout_.params().combine_row_bytes);
  check_cuda(cudaMemcpyAsync(shared_rows, rows, num_bytes, cudaMemcpyDeviceToDevice, stream_),
             "copying expert outputs to where peers can read them");
}

void CudaCollective::combine_send(const Handle& handle, const void* rows) {
  const DeviceGuard guard(device_);
  Complaint complaint = begin_call();
  CudaHandleState* state = own_state(handle, Phase::kCombine, complaint);
  if (state != nullptr) complaint = checks().expert_outputs(*state, rows);
  announce_call(DeviceCall::kCombine, state, complaint);
  ++num_send_halves_;
  share_rows(*state, rows);
  sum(*state, {.rows = rows, .phases = kSendPhase, .weighted = config_.apply_weights});
  open(Call::kCombine, *state, rows);
}

void CudaCollective::combine_receive(const Handle& handle, void* out, std::int64_t out_bytes) {
  check_call_open(Call::kCombine, handle);
  const DeviceGuard guard(device_);
  open_call_ = Call::kNone;
  CudaHandleState& state = *open_state_;
  // The send half is out: this rank takes part in any case.
  const Complaint complaint = checks().sums(state, out, out_bytes);
  sum(state, {.rows = open_rows_,
              .out = out,
              .phases = kReceivePhase,
              .weighted = config_.apply_weights,
              .has_tokens = !complaint});
  if (complaint) throw Error(*complaint);
}

void CudaCollective::combine(const Handle& handle, const void* rows, void* out, std::int64_t out_bytes) {
  const DeviceGuard guard(device_);
  Complaint complaint = begin_call();
  CudaHandleState* state = own_state(handle, Phase::kCombine, complaint);
  if (state != nullptr) complaint = checks().expert_outputs(*state, rows);
  if (!complaint) complaint = checks().sums(*state, out, out_bytes);
  announce_call(DeviceCall::kCombine, state, complaint);
  open_state_ = state;
  share_rows(*state, rows);
  sum(*state, {.rows = rows, .out = out, .weighted = config_.apply_weights});
}

// ---- Backward -------------------------------------------------------------------------------------------------------

namespace {

/// Whether gradients of the weights are given, by whatever this rank has to give or to take.
DeviceCall backward_call(const CudaHandleState& state, const float* grad_weights, const float* grad_topk_weights) {
  const bool has_rows = state.output.num_rows > 0;
  if (!has_rows && state.stats.num_tokens == 0) return DeviceCall::kDispatchBackwardAnyWeights;
  const float* given = has_rows ? grad_weights : grad_topk_weights;
  return given != nullptr ? DeviceCall::kDispatchBackwardWithWeights : DeviceCall::kDispatchBackward;
}

}  // namespace

void CudaCollective::dispatch_backward(const Handle& handle, const void* grad_rows, const float* grad_weights,
                                       void* grad_out, std::int64_t grad_out_bytes, float* grad_topk_weights) {
  const DeviceGuard guard(device_);
  Complaint complaint = begin_call();
  CudaHandleState* state = own_state(handle, Phase::kCombine, complaint);
  DeviceCall call = DeviceCall::kDispatchBackward;
  if (state != nullptr) {
    complaint =
        checks().dispatch_backward(*state, grad_rows, grad_weights, grad_out, grad_out_bytes, grad_topk_weights);
    call = backward_call(*state, grad_weights, grad_topk_weights);
  }
  call = announce_call(call, state, complaint);
  open_state_ = state;
  share_rows(*state, grad_rows);
  gather_weight_gradients(*state, call, grad_weights, grad_topk_weights);
  sum(*state, {.call = call, .rows = grad_rows, .out = grad_out});
}

/// Brings the gradients of the weights to their sources: they lie where the peers can read them when this rank
/// announces the call, and stay there until all ranks are done with it.
void CudaCollective::gather_weight_gradients(const CudaHandleState& state, DeviceCall call, const float* grad_weights,
                                             float* grad_topk_weights) {
  if (call != DeviceCall::kDispatchBackwardWithWeights) return;
  if (state.output.num_rows > 0 && grad_weights != nullptr) {
    const auto num_bytes = static_cast<std::size_t>(state.output.num_rows * layout_.weights_per_row()) * sizeof(float);
    check_cuda(cudaMemcpyAsync(own_section(BufferSection::kGradWeights), grad_weights, num_bytes,
                               cudaMemcpyDeviceToDevice, stream_),
               "copying gradients of the weights to where peers can read them");
  }
  WeightGradientArgs args;
  args.group = device_group_;
  args.layout = layout_;
  args.handle = state.arrays;
  args.call = call;
  // The sums of `direct` end it; those of other transports are no call of the device.
  args.ends_call = layout_.params().transport != Transport::kDevice;
  args.grad_topk_weights = state.stats.num_tokens > 0 ? grad_topk_weights : nullptr;
  args.num_blocks = choose(tuning_query(TunedCall::kCombine, state.stats.num_tokens)).num_blocks;
  check_cuda(launch_weight_gradients(args, stream_), "launching the gathering of gradients");
}

const std::byte* CudaCollective::combine_backward(const Handle& handle, const void* grad_out, const void* saved_rows,
                                                  float* grad_weights) {
  const DeviceGuard guard(device_);
  Complaint complaint = begin_call();
  CudaHandleState* state = own_state(handle, Phase::kCombine, complaint);
  std::byte* grad_rows = own_section(BufferSection::kCombineRows);
  if (state != nullptr) {
    complaint = checks().combine_backward(*state, grad_out, saved_rows, grad_weights, grad_rows);
  }
  announce_call(DeviceCall::kCombineBackward, state, complaint);
  open_state_ = state;
  MoveArgs args = move_args(kBothPhases);
  args.handle = state->arrays;
  args.rows = static_cast<const std::byte*>(grad_out);
  args.row_bytes = layout_.params().combine_row_bytes;
  args.scale_bytes = 0;
  args.call = DeviceCall::kCombineBackward;
  args.target = BufferSection::kCombineRows;
  args.zero_padding = true;
  start_move(*state, args);
  if (config_.apply_weights) {
    ScaleRowsArgs scale;
    // Other transports agree on the host.
    if (layout_.params().transport == Transport::kDevice) scale.local = device_group_.local;
    scale.layout = layout_;
    scale.handle = state->arrays;
    scale.saved_rows = static_cast<const std::byte*>(saved_rows);
    scale.grad_rows = grad_rows;
    scale.grad_weights = saved_rows != nullptr ? grad_weights : nullptr;
    scale.dtype = config_.combine_dtype;
    scale.num_blocks = choose(tuning_query(TunedCall::kCombine, state->stats.num_tokens)).num_blocks;
    check_cuda(launch_scale_rows(scale, stream_), "launching the scaling of gradients");
  }
  return grad_rows;
}

}  // namespace epistle::cuda
