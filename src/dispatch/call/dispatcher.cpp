#include "epistle/dispatcher.hpp"

#include <utility>

#include "dispatch/call/dispatcher_impl.hpp"

namespace epistle {

PrepareRequest routing_of(const DispatchRequest& request) noexcept {
  return {.expert_ids = request.expert_ids,
          .weights = request.weights,
          .num_tokens = request.num_tokens,
          .most_tokens = request.most_tokens,
          .step_seed = request.step_seed,
          .step_seed_at = request.step_seed_at,
          .num_sms = request.num_sms};
}

std::shared_ptr<HandleState> state_of(const CombineRequest& request) noexcept {
  return request.received.valid() ? CallAccess::state(request.received) : CallAccess::state(request.handle);
}

ConstRows rows_of(const CombineRequest& request) {
  const bool are_leased = request.received.valid() && request.rows.data == nullptr;
  return are_leased ? ConstRows(request.received.expert_outputs()) : request.rows;
}

ScaleStrides strides_in_bytes(const ScalesView& scales) noexcept {
  const std::int64_t element_bytes = scale_element_bytes(scales.format);
  const std::int64_t row_stride = scales.row_stride != 0 ? scales.row_stride : scales.num_columns;
  return {.row = row_stride * element_bytes,
          .column = scales.column_stride * element_bytes,
          .element_bytes = element_bytes};
}

Health health_of(const GroupHealth& health) noexcept {
  switch (health.code) {
    case ErrorCode::kOk:
      return Health::kOk;
    case ErrorCode::kPeerLost:
      return Health::kPeerLost;
    case ErrorCode::kTimeout:
      return Health::kTimeout;
    case ErrorCode::kAborted:
      return Health::kAborted;
    default:
      return Health::kBroken;
  }
}

WireBytes wire_bytes_of(const BufferPlan& plan, const RoutingStats& stats) noexcept {
  const LayoutParams& params = plan.layout().params();
  const std::int64_t dispatched = plan.sends_per_expert() ? stats.sent_remote_assignments : stats.sent_remote_rows;
  const std::int64_t combined = plan.combines_per_rank() ? stats.sent_remote_rows : stats.sent_remote_assignments;
  return {.dispatch = dispatched * (params.row_bytes + params.scale_bytes),
          .combine = combined * params.combine_row_bytes};
}

void DispatcherImpl::set_batch_quotas(const BatchQuotasRequest& /*request*/, Stream /*stream*/) {
  throw Error(ErrorCode::kUnsupported,
              "this dispatcher goes by the quotas of its placement; give those of a batch in set_placement");
}

Dispatcher::~Dispatcher() = default;
Dispatcher::Dispatcher(Dispatcher&&) noexcept = default;
Dispatcher& Dispatcher::operator=(Dispatcher&&) noexcept = default;

const DispatcherInfo& Dispatcher::info() const noexcept { return *impl_->identity().info; }
const DispatcherConfig& Dispatcher::config() const noexcept { return impl_->identity().config; }

Handle Dispatcher::prepare(const PrepareRequest& request, Stream stream) { return impl_->prepare(request, stream); }
Received Dispatcher::dispatch(const DispatchRequest& request, Stream stream) {
  return impl_->dispatch(request, stream);
}
Pending Dispatcher::dispatch_send(const DispatchRequest& request, Stream stream) {
  return impl_->dispatch_send(request, stream);
}
Received Dispatcher::dispatch_receive(Pending pending, Stream stream) {
  return impl_->dispatch_receive(std::move(pending), stream);
}
void Dispatcher::combine(const CombineRequest& request, Stream stream) { impl_->combine(request, stream); }
Pending Dispatcher::combine_send(const CombineRequest& request, Stream stream) {
  return impl_->combine_send(request, stream);
}
void Dispatcher::combine_receive(Pending pending, Stream stream) { impl_->combine_receive(std::move(pending), stream); }
void Dispatcher::dispatch_backward(const DispatchBackwardRequest& request, Stream stream) {
  impl_->dispatch_backward(request, stream);
}
Received Dispatcher::combine_backward(const CombineBackwardRequest& request, Stream stream) {
  return impl_->combine_backward(request, stream);
}
void Dispatcher::set_placement(const Placement& placement, Stream stream) { impl_->set_placement(placement, stream); }
const Placement& Dispatcher::placement() const noexcept { return impl_->placement(); }
void Dispatcher::set_batch_quotas(const BatchQuotasRequest& request, Stream stream) {
  impl_->set_batch_quotas(request, stream);
}
std::vector<std::int64_t> Dispatcher::expert_tokens() const { return impl_->expert_tokens(); }
std::vector<std::int64_t> Dispatcher::lost_tokens() const { return impl_->lost_tokens(); }
void Dispatcher::wait() { impl_->wait(); }
Health Dispatcher::poll() const noexcept { return impl_->poll(); }
std::vector<int> Dispatcher::suspects() const { return impl_->suspects(); }
void Dispatcher::abort() noexcept { impl_->abort(); }
WireBytes Dispatcher::wire_bytes(const Handle& handle) const { return impl_->wire_bytes(handle); }
std::int64_t Dispatcher::network_bytes() const noexcept { return impl_->network_bytes(); }
std::int64_t Dispatcher::shared_bytes() const noexcept { return impl_->shared_bytes(); }
std::int64_t Dispatcher::resident_bytes() const { return impl_->resident_bytes(); }
int Dispatcher::device_ordinal() const noexcept { return impl_->device_ordinal(); }
std::string Dispatcher::describe_tuning(std::int64_t num_tokens) const { return impl_->describe_tuning(num_tokens); }

}  // namespace epistle
