// CudaEngine: the backward passes, as the calls of cuda_calls.cpp.
#include <utility>

#include <fmt/format.h>

#include "dispatch/cuda/engine/cuda_call_parts.hpp"
#include "gpu/cuda_error.hpp"

namespace epistle::cuda {

namespace {

/// Whether gradients of the weights are given, by whatever this rank has to give or to take.
DeviceCall backward_call(const CudaHandleState& state, const DispatchBackwardRequest& request) {
  const bool has_rows = state.description.num_rows > 0;
  if (!has_rows && state.num_tokens == 0) return DeviceCall::kDispatchBackwardAnyWeights;
  const float* given = has_rows ? request.grad_weights : request.grad_probs;
  return given != nullptr ? DeviceCall::kDispatchBackwardWithWeights : DeviceCall::kDispatchBackward;
}

}  // namespace

void CudaEngine::dispatch_backward(const DispatchBackwardRequest& request, Stream stream) {
  const DeviceGuard guard(context_.device);
  Complaint complaint = begin_call(stream, request.num_sms, Phase::kCombine);
  const auto state = own_handle(CallAccess::state(request.handle), Phase::kCombine, complaint);
  std::shared_ptr<RowBuffer> buffer;
  DeviceCall call = DeviceCall::kDispatchBackward;
  if (!complaint) {
    complaint = checks().dispatch_backward(*state, request);
    call = backward_call(*state, request);
  }
  if (!complaint) {
    buffer = checks().buffer_of_rows(buffers_, *state, request.grad_rows, "dispatch_backward", complaint);
  }
  call = announce_call(call, state.get(), complaint);
  context_.buffer = buffer->idx;
  last_handle_ = state;
  transport_->complete(*state);
  const std::byte* rows = share_rows(*state, request.grad_rows, pulls_rows());
  gather_weight_gradients(*state, call, request);
  sum(*state, {.call = call, .rows = rows, .out = request.grad_tokens});
}

/// Brings the gradients of the weights to their sources: they lie where the peers can read them when this rank
/// announces the call, and stay there until all ranks are done with it.
void CudaEngine::gather_weight_gradients(const CudaHandleState& state, DeviceCall call,
                                         const DispatchBackwardRequest& request) {
  if (call != DeviceCall::kDispatchBackwardWithWeights) return;
  const std::int64_t num_rows = state.description.num_rows;
  if (num_rows > 0 && request.grad_weights != nullptr) {
    const auto num_bytes = static_cast<std::size_t>(num_rows * context_.layout().weights_per_row()) * sizeof(float);
    check_cuda(cudaMemcpyAsync(context_.own_section(BufferSection::kGradWeights), request.grad_weights, num_bytes,
                               cudaMemcpyDeviceToDevice, context_.stream),
               "copying gradients of the weights to where peers can read them");
  }
  WeightGradientArgs args;
  args.group = context_.device_group;
  args.layout = context_.layout();
  args.handle = state.arrays;
  args.buffer = context_.buffer;
  args.call = call;
  // Where kernels announce their calls the sums end it.
  args.ends_call = transport_->agrees_on_host();
  args.grad_topk_weights = state.num_tokens > 0 ? request.grad_probs : nullptr;
  args.num_blocks = transport_->tuning_for(context_.tuning_query(TunedCall::kCombine, state.num_tokens)).num_blocks;
  if (transport_->bring_weight_gradients(state, args)) return;
  if (relay_ != nullptr) relay_->answer(args.call, state);
  check_cuda(launch_weight_gradients(args, context_.stream), "launching the gathering of gradients");
}

Received CudaEngine::combine_backward(const CombineBackwardRequest& request, Stream stream) {
  const DeviceGuard guard(context_.device);
  const LayoutParams& params = context_.layout().params();
  Complaint complaint = begin_call(stream, request.num_sms, Phase::kCombine);
  auto state = own_handle(CallAccess::state(request.handle), Phase::kCombine, complaint);
  Complaint no_buffer;
  std::shared_ptr<RowBuffer> buffer = checks().free_buffer(buffers_, "combine_backward", Phase::kCombine, no_buffer);
  if (!complaint) {
    complaint = checks().combine_backward(*state, request, buffer != nullptr ? buffer->outputs : nullptr);
  }
  if (!complaint) complaint = no_buffer;
  announce_call(DeviceCall::kCombineBackward, state.get(), complaint);
  context_.buffer = buffer->idx;
  transport_->complete(*state);
  buffer->holder = nullptr;  // gradients are no rows that a combine may put others in the place of
  last_handle_ = state;
  MoveArgs args;
  args.group = context_.device_group;
  args.layout = context_.layout();
  args.handle = state->arrays;
  args.buffer = buffer->idx;
  args.rows = static_cast<const std::byte*>(request.grad_out.data);
  args.strides = strides_of(request.grad_out, {});
  args.row_bytes = params.combine_row_bytes;
  args.scale_bytes = 0;
  args.call = DeviceCall::kCombineBackward;
  args.target = BufferSection::kCombineRows;
  args.zero_padding = true;
  transport_->start_move(*state, args);
  if (context_.config.apply_weights) {
    ScaleRowsArgs scale;
    // Other transports agree on the host.
    if (!transport_->agrees_on_host()) scale.local = context_.device_group.local;
    scale.max_rows = state->description.num_rows;
    scale.layout = context_.layout();
    scale.handle = state->arrays;
    scale.saved_rows = static_cast<const std::byte*>(request.saved_rows.data);
    scale.saved_stride = request.saved_rows.stride_bytes();
    scale.grad_rows = buffer->outputs;
    scale.grad_weights = request.saved_rows.data != nullptr ? request.grad_weights : nullptr;
    scale.dtype = context_.config.combine_dtype;
    scale.num_blocks = transport_->tuning_for(context_.tuning_query(TunedCall::kCombine, state->num_tokens)).num_blocks;
    check_cuda(launch_scale_rows(scale, context_.stream), "launching the scaling of gradients");
  }
  return CallAccess::received(std::move(state), std::move(buffer), RowBuffer::Holds::kGradients);
}

}  // namespace epistle::cuda
