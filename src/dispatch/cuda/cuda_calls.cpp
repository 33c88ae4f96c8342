// CudaCollective: dispatch, combine and the backward passes. Every call checks what it was given, then either puts its
// kernel on the stream, or puts one there that tells the peers of the refusal, and throws.
#include <algorithm>
#include <array>

#include <fmt/format.h>

#include "dispatch/cuda/cuda_collective.hpp"
#include "group/cuda/cuda_error.hpp"

namespace epistle::cuda {

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

void CudaCollective::announce_call(Collective call, const CudaHandleState* handle, const Complaint& complaint) {
  static_cast<void>(handle);
  if (!complaint) return;
  switch (call) {
    case Collective::kPrepare:
      return;  // its kernel tells the peers
    case Collective::kDispatch:
      refuse_move(BufferSection::kReceiveRows, *complaint);
    case Collective::kCombineBackward:
      refuse_move(BufferSection::kCombineRows, *complaint);
    case Collective::kCombine:
    case Collective::kDispatchBackward:
      refuse_sum(*complaint);
  }
}

// ---- Dispatch -------------------------------------------------------------------------------------------------------

MoveArgs CudaCollective::move_args(std::uint32_t phases) const {
  MoveArgs args;
  args.group = device_group_;
  args.layout = layout_;
  args.phases = phases;
  args.zero_padding = config_.zero_padding;
  args.row_bytes = layout_.params().row_bytes;
  args.scale_bytes = layout_.params().scale_bytes;
  return args;
}

/// The peers are in the same call and must hear of it; then throws.
void CudaCollective::refuse_move(BufferSection target, const Error& complaint) {
  MoveArgs args = move_args(kBothPhases);
  args.target = target;
  args.refuse = true;
  args.tuning = MoveTuning{};
  check_cuda(launch_move(args, stream_), "telling the peers of a refusal");
  throw Error(complaint);
}

void CudaCollective::move(CudaHandleState& state, const Payload& payload, std::uint32_t phases) {
  MoveArgs args = move_args(phases);
  args.handle = state.arrays;
  args.rows = static_cast<const std::byte*>(payload.rows);
  args.scales = static_cast<const std::byte*>(payload.scales);
  args.behind_prepare = dispatch_follows_;
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
  announce_call(Collective::kDispatch, state, complaint);
  move(*state, payload, kSendPhase);
  open_call_ = Call::kDispatch;
  open_state_ = state;
  open_rows_ = payload.rows;
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
  announce_call(Collective::kDispatch, state, complaint);
  open_state_ = state;
  move(*state, payload, kBothPhases);
  return point_at_rows(*state);
}

Handle CudaCollective::prepare_and_dispatch(const RoutingView& routing, const Payload& payload) {
  const bool payload_fits =
      payload.num_tokens == routing.num_tokens && (payload.num_tokens == 0 || payload.rows != nullptr) &&
      (payload.num_tokens == 0 || (payload.scales != nullptr) == (layout_.params().scale_bytes > 0));
  // Under exact sizing the host has to see the counts in between; and what is wrong is said in the usual way.
  if (config_.sizing == Sizing::kExact || !can_follow_closely() || !payload_fits) {
    return Dispatcher::prepare_and_dispatch(routing, payload);
  }
  const DeviceGuard guard(device_);
  struct Following {
    explicit Following(bool& wanted) : flag(wanted) { flag = true; }
    ~Following() { flag = false; }
    Following(const Following&) = delete;
    Following& operator=(const Following&) = delete;
    bool& flag;
  };
  const Following following(dispatch_follows_);
  Handle handle = prepare(routing);
  auto* state = static_cast<CudaHandleState*>(handle.state());
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
  args.dtype = config_.combine_dtype;
  // Rows that nobody sums before they travel are read where they lie.
  args.pull = layout_.params().transport == Transport::kDevice && !layout_.returns_partial_sums();
  return args;
}

void CudaCollective::refuse_sum(const Error& complaint) {
  SumArgs args = sum_args(kBothPhases);
  args.refuse = true;
  args.tuning = SumTuning{};
  check_cuda(launch_sum(args, stream_), "telling the peers of a refusal");
  throw Error(complaint);
}

void CudaCollective::sum(CudaHandleState& state, const void* rows, void* out, std::uint32_t phases, bool weighted) {
  SumArgs args = sum_args(phases);
  args.handle = state.arrays;
  args.rows = static_cast<const std::byte*>(rows);
  args.out = static_cast<std::byte*>(out);
  args.weighted = weighted;
  std::byte* shared_rows = own_section(BufferSection::kCombineRows);
  if (args.pull && (phases & kSendPhase) != 0 && rows != shared_rows && state.output.num_rows > 0) {
    const auto num_bytes = static_cast<std::size_t>(state.output.num_rows * layout_.params().combine_row_bytes);
    check_cuda(cudaMemcpyAsync(shared_rows, rows, num_bytes, cudaMemcpyDeviceToDevice, stream_),
               "copying expert outputs to where peers can read them");
  }
  start_sum(state, args);
}

void CudaCollective::combine_send(const Handle& handle, const void* rows) {
  const DeviceGuard guard(device_);
  Complaint complaint = begin_call();
  CudaHandleState* state = own_state(handle, Phase::kCombine, complaint);
  if (state != nullptr) complaint = checks().expert_outputs(*state, rows);
  announce_call(Collective::kCombine, state, complaint);
  sum(*state, rows, nullptr, kSendPhase, config_.apply_weights);
  open_call_ = Call::kCombine;
  open_state_ = state;
  open_rows_ = rows;
}

void CudaCollective::combine_receive(const Handle& handle, void* out, std::int64_t out_bytes) {
  check_call_open(Call::kCombine, handle);
  const DeviceGuard guard(device_);
  open_call_ = Call::kNone;
  CudaHandleState& state = *open_state_;
  if (const Complaint complaint = checks().sums(state, out, out_bytes)) {
    // The send half is out: this rank still takes part, without tokens of its own.
    const std::int64_t num_tokens = std::exchange(state.arrays.num_tokens, 0);
    sum(state, open_rows_, out, kReceivePhase, config_.apply_weights);
    state.arrays.num_tokens = num_tokens;
    throw Error(*complaint);
  }
  sum(state, open_rows_, out, kReceivePhase, config_.apply_weights);
}

void CudaCollective::combine(const Handle& handle, const void* rows, void* out, std::int64_t out_bytes) {
  const DeviceGuard guard(device_);
  Complaint complaint = begin_call();
  CudaHandleState* state = own_state(handle, Phase::kCombine, complaint);
  if (state != nullptr) complaint = checks().expert_outputs(*state, rows);
  if (!complaint) complaint = checks().sums(*state, out, out_bytes);
  announce_call(Collective::kCombine, state, complaint);
  open_state_ = state;
  sum(*state, rows, out, kBothPhases, config_.apply_weights);
}

// ---- Backward -------------------------------------------------------------------------------------------------------

void CudaCollective::dispatch_backward(const Handle& handle, const void* grad_rows, const float* grad_weights,
                                       void* grad_out, std::int64_t grad_out_bytes, float* grad_topk_weights) {
  const DeviceGuard guard(device_);
  Complaint complaint = begin_call();
  CudaHandleState* state = own_state(handle, Phase::kCombine, complaint);
  if (state != nullptr) {
    complaint =
        checks().dispatch_backward(*state, grad_rows, grad_weights, grad_out, grad_out_bytes, grad_topk_weights);
  }
  announce_call(Collective::kDispatchBackward, state, complaint);
  open_state_ = state;
  gather_weight_gradients(*state, grad_weights, grad_topk_weights);
  sum(*state, grad_rows, grad_out, kBothPhases, false);
}

/// Brings the gradients of the weights to their sources. A host agreement says whether any rank has some, and lets
/// ranks grow the section.
void CudaCollective::gather_weight_gradients(CudaHandleState& state, const float* grad_weights,
                                             float* grad_topk_weights) {
  if (is_capturing()) {
    if (grad_weights == nullptr && grad_topk_weights == nullptr) return;
    throw complain(ErrorCode::kUnsupported, Phase::kCombine,
                   "gradients of the weights cannot be captured into a graph: ranks agree on the host");
  }
  struct Ask {
    std::int64_t gives;
    std::int64_t num_rows;
  };
  const bool gives = state.output.num_rows > 0 && grad_weights != nullptr;
  const bool takes = state.stats.num_tokens > 0 && grad_topk_weights != nullptr;
  const Ask own{gives || takes ? 1 : 0, gives ? state.output.num_rows : 0};
  std::vector<Ask> all(static_cast<std::size_t>(num_ranks()));
  group_->all_gather(&own, sizeof(own), all.data(), Phase::kCombine);
  if (std::none_of(all.begin(), all.end(), [](const Ask& ask) { return ask.gives != 0; })) return;
  std::vector<RowDemand> demands(static_cast<std::size_t>(num_ranks()));
  for (std::size_t peer = 0; peer < demands.size(); ++peer) demands[peer].grad_rows = all[peer].num_rows;
  grow(demands);
  if (gives) {
    const auto num_bytes = static_cast<std::size_t>(state.output.num_rows * layout_.weights_per_row()) * sizeof(float);
    check_cuda(cudaMemcpyAsync(own_section(BufferSection::kGradWeights), grad_weights, num_bytes,
                               cudaMemcpyDeviceToDevice, stream_),
               "copying gradients of the weights to where peers can read them");
  }
  WeightGradientArgs args;
  args.group = device_group_;
  args.layout = layout_;
  args.handle = state.arrays;
  args.grad_topk_weights = takes ? grad_topk_weights : nullptr;
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
  announce_call(Collective::kCombineBackward, state, complaint);
  open_state_ = state;
  MoveArgs args = move_args(kBothPhases);
  args.handle = state->arrays;
  args.rows = static_cast<const std::byte*>(grad_out);
  args.row_bytes = layout_.params().combine_row_bytes;
  args.scale_bytes = 0;
  args.target = BufferSection::kCombineRows;
  args.zero_padding = true;
  start_move(*state, args);
  if (config_.apply_weights) {
    ScaleRowsArgs scale;
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
