// CudaEngine: dispatch and combine. Every call checks what it was given, then either puts its
// kernel on the stream, or puts one there that tells the peers of the refusal, and throws.
#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "dispatch/cuda/engine/cuda_call_parts.hpp"
#include "gpu/cuda_error.hpp"

namespace epistle::cuda {

namespace {

// Rows of scales are whole words, whatever the format.
constexpr std::int64_t kQuantisedScaleBytes = 4;

}  // namespace

// ---- Halves ---------------------------------------------------------------------------------------------------------

void CudaEngine::close(Pending& pending, DeviceCall call) {
  const bool is_open = open_.call == call && pending.valid() && CallAccess::number(pending) == num_send_halves_ &&
                       CallAccess::state(pending) == open_.handle;
  if (is_open) return;
  throw checks().nothing_sent(call == DeviceCall::kDispatch ? "dispatch" : "combine",
                              call == DeviceCall::kDispatch ? Phase::kDispatch : Phase::kCombine);
}

/// The receive half of a call whose send half has found that the ranks do not agree: nobody has to make it any more.
void CudaEngine::end_open_call() {
  const OpenCall call = std::exchange(open_, OpenCall{});
  context_.buffer = call.buffer->idx;
  if (call.call == DeviceCall::kDispatch) {
    receive(call);
  } else {
    sum(*call.handle,
        {.rows = call.rows, .out = call.out, .phases = kReceivePhase, .as_rows_finish = call.as_rows_finish});
  }
}

/// The receive half of a dispatch.
void CudaEngine::receive(const OpenCall& call) {
  if (call.routed) {
    move_routed(call, *call.routed, kReceivePhase);
  } else {
    move(call, {.tokens = {.data = call.rows}, .phases = kReceivePhase});
  }
}

// ---- Dispatch -------------------------------------------------------------------------------------------------------

MoveArgs CudaEngine::move_args(const OpenCall& call, const Move& what) const {
  const LayoutParams& params = context_.layout().params();
  MoveArgs args;
  args.group = context_.device_group;
  args.layout = context_.layout();
  args.handle = call.handle->arrays;
  args.buffer = call.buffer->idx;
  args.phases = what.phases;
  args.send_half = what.phases == kSendPhase ? num_send_halves_ : 0;
  args.zero_padding = context_.config.zero_padding;
  args.row_bytes = params.row_bytes;
  args.scale_bytes = params.scale_bytes;
  args.rows = static_cast<const std::byte*>(what.tokens.data);
  args.scales = static_cast<const std::byte*>(what.scales.data);
  args.strides = strides_of(what.tokens, what.scales);
  return args;
}

void CudaEngine::quantise(MoveArgs& args, std::int64_t num_tokens) {
  const LayoutParams& params = context_.layout().params();
  if ((args.phases & kSendPhase) != 0 && num_tokens > 0) {
    const std::int64_t budget =
        context_.num_sms > 0 ? std::min(context_.num_sms, context_.sm_share) : context_.sm_share;
    const QuantiseArgs quantise_args{.rows = args.rows,
                                     .row_stride = args.strides.row,
                                     .num_tokens = num_tokens,
                                     .hidden = context_.config.hidden,
                                     .powers_of_two = params.powers_of_two,
                                     .scale_format = params.scale_format,
                                     .scale_bytes = params.scale_bytes,
                                     .out_rows = quantised_rows_,
                                     .out_scales = quantised_scales_,
                                     .early_start = context_.device_group.early_start,
                                     .num_blocks = static_cast<int>(std::min(num_tokens, budget))};
    check_cuda(launch_quantise(quantise_args, context_.stream), "launching the quantisation of rows");
  }
  args.rows = quantised_rows_;
  args.scales = quantised_scales_;
  args.strides = {.row = params.row_bytes,
                  .scale_row = params.scale_bytes,
                  .scale_column = kQuantisedScaleBytes,
                  .scale_element_bytes = kQuantisedScaleBytes};
}

void CudaEngine::move(const OpenCall& call, const Move& what) {
  MoveArgs args = move_args(call, what);
  if (context_.config.quantises) quantise(args, call.handle->num_tokens);
  args.behind_prepare = what.follows == Follows::kDispatchClosely;
  args.skips_void = what.follows != Follows::kNothing;
  args.prepare_blocks = prepare_blocks_;
  context_.buffer = call.buffer->idx;
  call.buffer->holder = call.handle.get();
  call.buffer->raises_flags = false;
  last_handle_ = call.handle;
  transport_->start_move(*call.handle, args);
}

CudaEngine::OpenCall CudaEngine::begin_dispatch(const DispatchRequest& request, Stream stream) {
  Complaint complaint = begin_call(stream, request.num_sms, Phase::kDispatch);
  OpenCall call;
  call.call = DeviceCall::kDispatch;
  call.handle = own_handle(CallAccess::state(request.handle), Phase::kDispatch, complaint);
  if (!complaint) complaint = checks().tokens(call.handle->num_tokens, request.tokens, request.scales);
  call.buffer = checks().free_buffer(buffers_, "dispatch", Phase::kDispatch, complaint);
  call.rows = static_cast<const std::byte*>(request.tokens.data);
  announce_call(DeviceCall::kDispatch, call.handle.get(), complaint);
  transport_->complete(*call.handle);
  return call;
}

void CudaEngine::move_routed(const OpenCall& call, const DispatchRequest& request, std::uint32_t phases) {
  PrepareArgs routing = routing_args(*call.handle, routing_of(request));
  routing.call = DeviceCall::kPrepareAndDispatch;
  MoveArgs args = move_args(call, {.tokens = request.tokens, .scales = request.scales, .phases = phases});
  context_.buffer = call.buffer->idx;
  call.buffer->holder = call.handle.get();
  call.buffer->raises_flags = call.buffer->flags.number != nullptr;
  last_handle_ = call.handle;
  transport_->start_routed_move(*call.handle, routing, args);
}

CudaEngine::OpenCall CudaEngine::begin_routed_dispatch(const DispatchRequest& request, Stream stream,
                                                       std::uint32_t phases) {
  Complaint complaint = begin_call(stream, request.num_sms, Phase::kLayout);
  OpenCall call;
  call.call = DeviceCall::kDispatch;
  call.rows = static_cast<const std::byte*>(request.tokens.data);
  call.handle = begin_routing(routing_of(request), complaint);
  if (!complaint) complaint = checks().tokens(request.expert_ids.num_tokens, request.tokens, request.scales);
  call.buffer = checks().free_buffer(buffers_, "dispatch", Phase::kDispatch, complaint);
  announce_call(DeviceCall::kPrepareAndDispatch, nullptr, complaint);
  start_routing(*call.handle, routing_of(request));
  call.handle->routed = true;
  call.handle->is_left_on_device = true;
  move_routed(call, request, phases);
  return call;
}

Received CudaEngine::dispatch(const DispatchRequest& request, Stream stream) {
  const DeviceGuard guard(context_.device);
  if (brings_ids(request)) return dispatch_with_ids(request, stream);
  OpenCall call = begin_dispatch(request, stream);
  move(call, {.tokens = request.tokens, .scales = request.scales});
  return CallAccess::received(std::move(call.handle), std::move(call.buffer), RowBuffer::Holds::kRows);
}

Received CudaEngine::dispatch_with_ids(const DispatchRequest& request, Stream stream) {
  if (routes_rows()) {
    OpenCall call = begin_routed_dispatch(request, stream, kBothPhases);
    return CallAccess::received(std::move(call.handle), std::move(call.buffer), RowBuffer::Holds::kRows);
  }
  const PrepareRequest routing = routing_of(request);
  Complaint found = begin_call(stream, request.num_sms, Phase::kLayout);
  if (found) announce_call(DeviceCall::kPrepareAndDispatch, nullptr, found);
  // Under exact sizing the host has to see the counts in between.
  const bool is_async = context_.config.sizing == SizingMode::kCapacity && !transport_->agrees_on_host();
  if (!is_async) {
    DispatchRequest rest = request;
    rest.handle = CallAccess::handle(prepare_for(routing, Follows::kDispatch, nullptr));
    OpenCall call = begin_dispatch(rest, stream);
    move(call, {.tokens = request.tokens, .scales = request.scales});
    return CallAccess::received(std::move(call.handle), std::move(call.buffer), RowBuffer::Holds::kRows);
  }
  OpenCall call;
  call.call = DeviceCall::kDispatch;
  // What the peers may rely on is announced by prepare already.
  Complaint complaint = checks().tokens(request.expert_ids.num_tokens, request.tokens, request.scales);
  call.buffer = checks().free_buffer(buffers_, "dispatch", Phase::kDispatch, complaint);
  const bool closely = transport_->can_follow_closely() && !context_.config.quantises && !complaint;
  const Follows follows = closely ? Follows::kDispatchClosely : Follows::kDispatch;
  call.handle = prepare_for(routing, follows, call.buffer.get());
  // Where the routing turns out to be void there is no dispatch, on no rank: the host must not look at findings here.
  if (complaint) {
    call.handle->checked = true;  // what prepare finds has nothing to add
    refuse(DeviceCall::kDispatch, *complaint, call.handle->arrays.totals);
  }
  move(call, {.tokens = request.tokens, .scales = request.scales, .follows = follows});
  return CallAccess::received(std::move(call.handle), std::move(call.buffer), RowBuffer::Holds::kRows);
}

Pending CudaEngine::dispatch_send(const DispatchRequest& request, Stream stream) {
  const DeviceGuard guard(context_.device);
  if (brings_ids(request) && routes_rows()) {
    open_ = begin_routed_dispatch(request, stream, kSendPhase);
    open_.routed = request;
    return CallAccess::pending(open_.handle, open_.buffer, ++num_send_halves_);
  }
  DispatchRequest rest = request;
  if (brings_ids(request)) {
    rest.handle = prepare(routing_of(request), stream);
  }
  OpenCall call = begin_dispatch(rest, stream);
  ++num_send_halves_;
  move(call, {.tokens = request.tokens, .scales = request.scales, .phases = kSendPhase});
  open_ = std::move(call);
  return CallAccess::pending(open_.handle, open_.buffer, num_send_halves_);
}

Received CudaEngine::dispatch_receive(Pending pending, Stream stream) {
  const DeviceGuard guard(context_.device);
  if (is_behind_mask()) {
    use(stream);
    follow_mask();
  }
  close(pending, DeviceCall::kDispatch);
  use(stream);
  OpenCall call = std::exchange(open_, OpenCall{});
  receive(call);
  return CallAccess::received(std::move(call.handle), std::move(call.buffer), RowBuffer::Holds::kRows);
}

// ---- Combine --------------------------------------------------------------------------------------------------------

void CudaEngine::sum(const CudaHandleState& state, const SumCall& call) {
  SumArgs args;
  args.group = context_.device_group;
  args.layout = context_.layout();
  args.handle = state.arrays;
  args.buffer = context_.buffer;
  args.phases = call.phases;
  args.send_half = call.phases == kSendPhase ? num_send_halves_ : 0;
  args.dtype = context_.config.combine_dtype;
  args.pull = pulls_rows();
  args.call = call.call;
  args.rows = call.rows;
  args.out = static_cast<std::byte*>(call.out.data);
  args.out_stride = call.out.stride_bytes();
  args.weighted = call.weighted;
  if (call.weights != nullptr) args.handle.weights = const_cast<float*>(call.weights);  // sums only read them
  context_.as_rows_finish = call.as_rows_finish;
  transport_->start_sum(state, args);
}

/// Before anything announces the call: from then on peers may read the rows. Returns where they lie, one behind the
/// other.
const std::byte* CudaEngine::share_rows(const CudaHandleState& state, const ConstRows& rows, bool pulled) {
  std::byte* shared_rows = context_.own_section(BufferSection::kCombineRows);
  const auto* given = static_cast<const std::byte*>(rows.data);
  const std::int64_t row_bytes = context_.layout().params().combine_row_bytes;
  const bool is_dense = rows.stride_bytes() == row_bytes;
  if (given == shared_rows || state.description.num_rows == 0) return shared_rows;
  if (!pulled && is_dense) return given;
  check_cuda(cudaMemcpy2DAsync(shared_rows, static_cast<std::size_t>(row_bytes), given,
                               static_cast<std::size_t>(rows.stride_bytes()), static_cast<std::size_t>(row_bytes),
                               static_cast<std::size_t>(state.description.num_rows), cudaMemcpyDeviceToDevice,
                               context_.stream),
             "copying expert outputs to where peers can read them");
  return shared_rows;
}

CudaEngine::OpenCall CudaEngine::begin_combine(const CombineRequest& request, Stream stream, std::uint32_t phases) {
  Complaint complaint = begin_call(stream, request.num_sms, Phase::kCombine);
  const ConstRows rows = rows_of(request);
  OpenCall call;
  call.call = DeviceCall::kCombine;
  call.handle = own_handle(state_of(request), Phase::kCombine, complaint);
  if (!complaint) complaint = checks().expert_outputs(*call.handle, rows, request.weights);
  if (!complaint) complaint = checks().sums(*call.handle, request.out);
  if (!complaint) call.buffer = checks().buffer_of_rows(buffers_, *call.handle, rows, "combine", complaint);
  if (!complaint) complaint = checks().as_rows_finish(request.as_rows_finish, rows, call.buffer.get());
  announce_call(DeviceCall::kCombine, call.handle.get(), complaint);
  context_.buffer = call.buffer->idx;
  last_handle_ = call.handle;
  call.rows = share_rows(*call.handle, rows, pulls_rows() && !transport_->pushes_outputs());
  call.out = request.out;
  call.weights = request.weights.data;
  call.as_rows_finish = request.as_rows_finish;
  if (phases == kSendPhase) ++num_send_halves_;
  sum(*call.handle, {.rows = call.rows,
                     .out = call.out,
                     .weights = call.weights,
                     .phases = phases,
                     .weighted = context_.config.apply_weights,
                     .as_rows_finish = call.as_rows_finish});
  return call;
}

void CudaEngine::combine(const CombineRequest& request, Stream stream) {
  const DeviceGuard guard(context_.device);
  static_cast<void>(begin_combine(request, stream, kBothPhases));
}

Pending CudaEngine::combine_send(const CombineRequest& request, Stream stream) {
  const DeviceGuard guard(context_.device);
  open_ = begin_combine(request, stream, kSendPhase);
  return CallAccess::pending(open_.handle, nullptr, num_send_halves_);
}

void CudaEngine::combine_receive(Pending pending, Stream stream) {
  const DeviceGuard guard(context_.device);
  if (is_behind_mask()) {
    use(stream);
    follow_mask();
  }
  close(pending, DeviceCall::kCombine);
  use(stream);
  const OpenCall call = std::exchange(open_, OpenCall{});
  context_.buffer = call.buffer->idx;
  sum(*call.handle, {.rows = call.rows,
                     .out = call.out,
                     .weights = call.weights,
                     .phases = kReceivePhase,
                     .weighted = context_.config.apply_weights,
                     .as_rows_finish = call.as_rows_finish});
}

}  // namespace epistle::cuda
