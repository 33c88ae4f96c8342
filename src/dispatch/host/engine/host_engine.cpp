#include "dispatch/host/engine/host_engine.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "dispatch/host/engine/link_bytes.hpp"
#include "dispatch/host/engine/owed_rows.hpp"
#include "dispatch/host/engine/sums.hpp"

namespace epistle::host {
namespace {

// Distinguishes the dispatchers of a process, so that a handle of another one is noticed.
std::atomic<std::uint64_t> next_dispatcher_id{1};

// Steps of a call behind the one in which all agree on it. They are told apart, so that a rank that starts a call never
// takes part in the end of another one's.
constexpr std::int32_t kRowsSent = 1;
constexpr std::int32_t kRowsRead = 2;
constexpr std::int32_t kPlacementMade = 1;
constexpr std::int32_t kRowsForwarded = 3;

Call step_of(Call call, std::int32_t step) noexcept {
  call.step = step;
  return call;
}

/// Where copy `idx` of what a lease shows lies on this rank.
RowBuffer place_buffer(const HostContext& context, std::int32_t idx) {
  RowBuffer buffer;
  const auto section = [&](BufferSection wanted) { return context.memory.section(context.rank, wanted, idx); };
  buffer.rows = section(BufferSection::kReceiveRows);
  buffer.scales = section(BufferSection::kReceiveScales);
  buffer.outputs = section(BufferSection::kCombineRows);
  buffer.memory = context.memory.share();
  return buffer;
}

/// The scales of a request in bytes, where its rows have any.
ScaleSource scale_source(const ScalesView& scales) {
  if (scales.data == nullptr) return {};
  const ScaleStrides strides = strides_in_bytes(scales);
  return {.data = static_cast<const std::byte*>(scales.data),
          .row_stride = strides.row,
          .column_stride = strides.column,
          .element_bytes = strides.element_bytes};
}

}  // namespace

HostEngine::HostEngine(std::shared_ptr<GroupImpl> group, DispatcherIdentity identity, const ResolvedConfig& config,
                       const PlanRules& rules, const HostOptions& options, MakeMover make_mover)
    : DispatcherImpl(std::move(identity)),
      group_(std::move(group)),
      context_(*group_, config, rules, options),
      number_(static_cast<std::uint64_t>(group_->num_regions())),
      dispatcher_id_(new_dispatcher_id()),
      mask_version_(group_->mask_version()),
      mover_(make_mover(context_)),
      preparation_(context_, *mover_),
      buffers_(make_buffers()),
      wanted_(static_cast<std::size_t>(context_.num_ranks)),
      promised_of_(static_cast<std::size_t>(context_.num_ranks), PublishedBuffers::kNone) {
  if (config.places_experts())
    preparation_.place_experts({config.placement, config, context_.num_ranks, context_.rank});
}

std::uint64_t HostEngine::new_dispatcher_id() noexcept {
  return next_dispatcher_id.fetch_add(1, std::memory_order_relaxed);
}

RowBufferPool HostEngine::make_buffers() const {
  return {context_.config, [this](std::int32_t idx) { return place_buffer(context_, idx); }};
}

Call HostEngine::call_of(CallKind kind, const HostHandle* state, const RowBuffer* buffer) const noexcept {
  return {.kind = kind,
          .buffer = buffer != nullptr ? buffer->idx : 0,
          .subject = number_,
          .detail = state != nullptr ? state->handle_id : 0};
}

std::string_view HostEngine::open_call_name() const noexcept {
  if (open_.announced.kind == CallKind::kNone) return {};
  return open_.announced.kind == CallKind::kDispatch ? "dispatch" : "combine";
}

std::shared_ptr<HostHandle> HostEngine::own_handle(const std::shared_ptr<HandleState>& state, Phase phase,
                                                   Complaint& complaint) const {
  const bool is_own = state != nullptr && owns(*state);
  if (!complaint) complaint = checks().handle(state.get(), is_own, open_call_name(), phase);
  return complaint ? nullptr : std::static_pointer_cast<HostHandle>(state);
}

std::int64_t HostEngine::agree(const Call& call, Phase phase, const Complaint& complaint, const MissingRows& missing) {
  const std::int64_t value = group_->agree(call, phase, complaint, &missing);
  for (int peer = 0; peer < context_.num_ranks; ++peer) {
    context_.buffer_of[static_cast<std::size_t>(peer)] = group_->announced_buffer(peer);
  }
  return value;
}

// ---- Steps ----------------------------------------------------------------------------------------------------------

template <typename Send>
Ticket HostEngine::send(const Sending& sending, const Send& send_rows) {
  const Call& call = sending.call;
  if (!sending.complaint && mover_->sends_unagreed()) tell_of_buffers(call.buffer);
  const bool agrees_first = sending.complaint || sending.order == SendOrder::kWhenAgreed;
  if (agrees_first) {
    (void)agree(call, sending.phase, sending.complaint, sending.missing);
  } else {
    group_->check_usable(&sending.missing);
  }
  send_rows();
  return group_->arrive(agrees_first ? step_of(call, kRowsSent) : call);
}

void HostEngine::wait_for_all(const HostHandle& state, Ticket ticket, Phase phase, const MissingRows& missing) {
  group_->wait(ticket, phase, &missing);
  if (mover_->sends_unagreed()) learn_of_buffers(state, ticket);
}

// ---- Prepare --------------------------------------------------------------------------------------------------------

Complaint HostEngine::read_routing(const PrepareRequest& request, Stream stream, std::shared_ptr<HostHandle>& state) {
  return attempt([&]() -> Complaint {
    const CallChecks check = checks();
    if (Complaint found = check.device_options(stream, request.num_sms, Phase::kLayout)) return found;
    if (Complaint found = check.nothing_open(open_call_name(), Phase::kLayout)) return found;
    if (Complaint found = check.routing(request)) return found;
    if (differing_generation_) return check.complain(ErrorCode::kShapeMismatch, Phase::kLayout, kPlacementsDiffer);
    state = handles_.acquire(context_.config.max_handles);
    if (state == nullptr) {
      return check.complain(ErrorCode::kInvalidArgument, Phase::kLayout,
                            all_handles_in_use(context_.config.max_handles));
    }
    state->dispatcher_id = dispatcher_id_;
    // Counts only once all ranks agree: a prepare that meets another call must not set this rank apart from the others.
    state->handle_id = num_prepared_ + 1;
    state->exchange = context_.num_exchanges;
    state->num_ranks = static_cast<std::size_t>(context_.num_ranks);
    return preparation_.read(request, *state);
  });
}

void HostEngine::finish_routing(HostHandle& state, const Call& call) {
  num_prepared_ = state.handle_id;
  preparation_.finish(state, call);
}

Handle HostEngine::prepare(const PrepareRequest& request, Stream stream) {
  begin_call();  // others may still read what this rank published last
  std::shared_ptr<HostHandle> state;
  const Complaint complaint = read_routing(request, stream, state);
  Call call = call_of(CallKind::kPrepare, nullptr, nullptr);
  call.detail = num_prepared_ + 1;
  const bool promises_buffers = mover_->sends_unagreed();
  if (!complaint && promises_buffers) tell_of_buffers(call.buffer);
  (void)group_->agree(call, Phase::kLayout, complaint);
  if (promises_buffers) {
    learn_of_buffers(*state, group_->last_step());
    ask_for_promises();
  }
  finish_routing(*state, call);
  return CallAccess::handle(std::move(state));
}

void HostEngine::set_placement(const Placement& placement, Stream stream) {
  begin_call();
  Complaint complaint = checks().device_options(stream, 0, Phase::kLayout);
  if (!complaint) complaint = checks().nothing_open(open_call_name(), Phase::kLayout);
  PlacedExperts placed;
  agree_on_placement(*group_,
                     {.config = context_.config,
                      .generation = differing_generation_.value_or(this->placement().generation()),
                      .next = placement,
                      .dispatcher = number_},
                     complaint);
  (void)group_->agree(step_of(call_of(CallKind::kSetPlacement, nullptr, nullptr), kPlacementMade), Phase::kLayout,
                      attempt([&] {
                        placed = {placement, context_.config, context_.num_ranks, context_.rank};
                      }));
  preparation_.place_experts(std::move(placed));
  differing_generation_.reset();
}

void HostEngine::set_batch_quotas(const BatchQuotasRequest& request, Stream stream) {
  if (Complaint complaint = checks().device_options(stream, 0, Phase::kLayout)) throw Error(*complaint);
  if (Complaint complaint = refuse_batch_quotas(request, preparation_.placed())) throw Error(*complaint);
  preparation_.share_batch(request);
}

// ---- Dispatch -------------------------------------------------------------------------------------------------------

HostEngine::OpenCall HostEngine::send_dispatch(const DispatchRequest& request, Stream stream) {
  follow_mask();
  const LayoutParams& params = context_.layout().params();
  OpenCall call;
  // Static shapes: nobody waits for counts, so rows have no places yet and are laid out where they are.
  call.brings_routing =
      brings_ids(request) && mover_->sends_unagreed() && context_.config.sizing == SizingMode::kCapacity;
  Handle handle = request.handle;
  if (brings_ids(request) && !call.brings_routing) handle = prepare(routing_of(request), stream);
  Complaint complaint;
  if (call.brings_routing) {
    complaint = read_routing(routing_of(request), stream, call.handle);
  } else {
    complaint = checks().device_options(stream, request.num_sms, Phase::kDispatch);
    call.handle = own_handle(CallAccess::state(handle), Phase::kDispatch, complaint);
  }
  if (!complaint) complaint = checks().tokens(call.handle->num_tokens, request.tokens, request.scales);
  SendOrder order = mover_->sends_unagreed() ? SendOrder::kAtOnce : SendOrder::kWhenAgreed;
  if (!complaint && order == SendOrder::kAtOnce && !call.brings_routing) order = order_of_placing(*call.handle);
  const bool goes_to_promised = !call.brings_routing && order == SendOrder::kAtOnce;
  if (!complaint) {
    call.buffer =
        goes_to_promised ? promised_buffer() : checks().free_buffer(buffers_, "dispatch", Phase::kDispatch, complaint);
  }
  call.announced = call_of(CallKind::kDispatch, call.handle.get(), call.buffer.get());
  if (call.brings_routing) call.announced.detail = num_prepared_ + 1;
  call.move = MoveJob{.handle = call.handle.get(),
                      .rows = static_cast<const std::byte*>(request.tokens.data),
                      .row_stride = request.tokens.stride_bytes(),
                      .scales = scale_source(request.scales),
                      .quantises = context_.config.quantises,
                      .row_bytes = params.row_bytes,
                      .scale_bytes = params.scale_bytes,
                      .target = BufferSection::kReceiveRows,
                      .is_published = call.brings_routing,
                      .exchange = context_.num_exchanges,
                      .phase = Phase::kDispatch,
                      .forwarded = step_of(call.announced, kRowsForwarded)};
  const MissingRows missing = rows_to(call.brings_routing ? nullptr : call.handle.get(), context_.rank);
  call.ticket = send({call.announced, Phase::kDispatch, complaint, order, missing}, [&] {
    if (goes_to_promised) context_.buffer_of = promised_of_;  // as order_of_placing() has read
    call.buffer->holder = call.handle.get();
    mover_->send_rows(call.move);
  });
  call.number = ++num_sent_;
  return call;
}

Received HostEngine::receive_dispatch(OpenCall call) {
  if (call.brings_routing) {
    wait_for_all(*call.handle, call.ticket, Phase::kDispatch, MissingRows());
    finish_routing(*call.handle, call.announced);
  } else {
    wait_for_all(*call.handle, call.ticket, Phase::kDispatch, rows_to(call.handle.get(), context_.rank));
  }
  receive_rows(call.move);
  return CallAccess::received(std::move(call.handle), std::move(call.buffer), RowBuffer::Holds::kRows);
}

Received HostEngine::dispatch(const DispatchRequest& request, Stream stream) {
  return receive_dispatch(send_dispatch(request, stream));
}

Pending HostEngine::dispatch_send(const DispatchRequest& request, Stream stream) {
  open_ = send_dispatch(request, stream);
  // Where the routing comes with the rows, they have no places yet.
  return CallAccess::pending(open_.handle, open_.brings_routing ? nullptr : open_.buffer, open_.number);
}

void HostEngine::close(Pending& pending, CallKind kind) {
  follow_mask();
  const bool is_open = open_.announced.kind == kind && pending.valid() && CallAccess::number(pending) == open_.number &&
                       CallAccess::state(pending) == open_.handle;
  if (is_open) return;
  throw checks().nothing_sent(kind == CallKind::kDispatch ? "dispatch" : "combine",
                              kind == CallKind::kDispatch ? Phase::kDispatch : Phase::kCombine);
}

Received HostEngine::dispatch_receive(Pending pending, Stream /*stream*/) {
  close(pending, CallKind::kDispatch);
  return receive_dispatch(std::exchange(open_, OpenCall{}));
}

void HostEngine::receive_rows(const MoveJob& job) {
  mover_->receive_rows(job);
  zero_padding(job);
}

void HostEngine::zero_padding(const MoveJob& job) const {
  if (!context_.config.zero_padding) return;
  const HostHandle& state = *job.handle;
  std::byte* const rows = context_.own_section(job.target);
  const ReceivedScales scales = context_.received_scales(context_.rank, state);
  const auto zero = [&](std::int64_t begin, std::int64_t end) {
    if (begin >= end) return;
    std::memset(rows + begin * job.row_bytes, 0, static_cast<std::size_t>((end - begin) * job.row_bytes));
    if (job.scale_bytes > 0) scales.zero(begin, end);
  };
  const std::int64_t num_rows = state.description.num_rows;
  if (context_.layout().token_major()) {
    zero(state.stats.output_rows, num_rows);
    return;
  }
  for (std::size_t expert = 0; expert < state.expert_counts.size(); ++expert) {
    zero(state.expert_begin[expert] + state.expert_counts[expert], state.expert_begin[expert + 1]);
  }
  zero(state.expert_begin.back(), num_rows);
}

// ---- Combine --------------------------------------------------------------------------------------------------------

/// Copies rows of the caller's to where the other ranks read them, unless they are there.
void HostEngine::stage_rows(const HostHandle& state, const ConstRows& rows, const RowBuffer& buffer) {
  std::byte* target = buffer.outputs;
  if (rows.data == target || state.description.num_rows == 0) return;
  const std::int64_t row_bytes = context_.layout().params().combine_row_bytes;
  context_.copy_block({.source = static_cast<const std::byte*>(rows.data),
                       .target = target,
                       .num_rows = state.description.num_rows,
                       .row_bytes = row_bytes,
                       .source_stride = rows.stride_bytes(),
                       .mode = context_.store_mode(state.description.num_rows * row_bytes)});
}

HostEngine::OpenCall HostEngine::send_combine(const CombineRequest& request, Stream stream) {
  follow_mask();
  const ConstRows rows = rows_of(request);
  OpenCall call;
  Complaint complaint = checks().device_options(stream, request.num_sms, Phase::kCombine);
  call.handle = own_handle(state_of(request), Phase::kCombine, complaint);
  if (!complaint) complaint = checks().expert_outputs(*call.handle, rows, request.weights);
  if (!complaint) complaint = checks().sums(*call.handle, request.out);
  if (!complaint) call.buffer = checks().buffer_of_rows(buffers_, *call.handle, rows, "combine", complaint);
  if (!complaint) complaint = checks().as_rows_finish(request.as_rows_finish, rows, call.buffer.get());
  call.announced = call_of(CallKind::kCombine, call.handle.get(), call.buffer.get());
  call.sums = {.handle = call.handle.get(),
               .weighted = context_.config.apply_weights,
               .out = static_cast<std::byte*>(request.out.data),
               .out_stride = request.out.stride_bytes()};
  // Where the rows are is told in the same step.
  const SendOrder order = mover_->sends_unagreed() ? SendOrder::kAtOnce : SendOrder::kWhenAgreed;
  const MissingRows missing = rows_back_to(call.handle.get(), context_.rank);
  call.ticket = send({call.announced, Phase::kCombine, complaint, order, missing}, [&] {
    stage_rows(*call.handle, rows, *call.buffer);
    mover_->send_sums(call.sums);
  });
  call.number = ++num_sent_;
  return call;
}

void HostEngine::receive_combine(const OpenCall& call) {
  wait_for_all(*call.handle, call.ticket, Phase::kCombine, rows_back_to(call.handle.get(), context_.rank));
  mover_->receive_sums(call.sums);
  // Nobody may write new rows while one still reads.
  (void)group_->agree(step_of(call_of(CallKind::kCombine, call.handle.get(), nullptr), kRowsRead), Phase::kCombine);
}

void HostEngine::combine(const CombineRequest& request, Stream stream) {
  receive_combine(send_combine(request, stream));
}

Pending HostEngine::combine_send(const CombineRequest& request, Stream stream) {
  open_ = send_combine(request, stream);
  return CallAccess::pending(open_.handle, nullptr, open_.number);
}

void HostEngine::combine_receive(Pending pending, Stream /*stream*/) {
  close(pending, CallKind::kCombine);
  receive_combine(std::exchange(open_, OpenCall{}));
}

// ---- Backward -------------------------------------------------------------------------------------------------------

void HostEngine::dispatch_backward(const DispatchBackwardRequest& request, Stream stream) {
  follow_mask();
  Complaint complaint = checks().device_options(stream, request.num_sms, Phase::kCombine);
  const std::shared_ptr<HostHandle> state = own_handle(CallAccess::state(request.handle), Phase::kCombine, complaint);
  std::shared_ptr<RowBuffer> buffer;
  const bool gives = state != nullptr && state->description.num_rows > 0 && request.grad_weights != nullptr;
  const bool takes = state != nullptr && state->num_tokens > 0 && request.grad_probs != nullptr;
  if (!complaint) complaint = checks().dispatch_backward(*state, request);
  if (!complaint) {
    buffer = checks().buffer_of_rows(buffers_, *state, request.grad_rows, "dispatch_backward", complaint);
  }
  Call call = call_of(CallKind::kDispatchBackward, state.get(), buffer.get());
  // All ranks give and take gradients of the weights, or none; one that has neither rows nor tokens goes with either.
  call.value = gives || takes ? 1 : 0;
  if (state != nullptr && state->description.num_rows == 0 && state->num_tokens == 0) call.value = kAnyValue;
  const MissingRows missing = rows_back_to(state.get(), context_.rank);
  const bool all_give = agree(call, Phase::kCombine, complaint, missing) == 1;
  if (all_give) {
    for (int peer = 0; peer < context_.num_ranks; ++peer) {
      wanted_[static_cast<std::size_t>(peer)] = {.grad_rows = state->tables.output_rows(peer)};
    }
    context_.grow(wanted_, call, Phase::kCombine);
  }
  stage_rows(*state, request.grad_rows, *buffer);
  if (gives) {
    std::memcpy(
        context_.own_section(BufferSection::kGradWeights), request.grad_weights,
        static_cast<std::size_t>(state->description.num_rows * context_.layout().weights_per_row()) * sizeof(float));
  }
  const SumRequest sums{.handle = state.get(),
                        .weighted = false,
                        .out = static_cast<std::byte*>(request.grad_tokens.data),
                        .out_stride = request.grad_tokens.stride_bytes(),
                        .brings_gradients = all_give,
                        .grad_probs = takes ? request.grad_probs : nullptr};
  mover_->send_sums(sums);
  group_->wait(group_->arrive(step_of(call, kRowsSent)), Phase::kCombine, &missing);
  mover_->receive_sums(sums);
  if (takes && !context_.plan.uses_links()) {
    gather_weight_gradients(context_, *state, {.begin = 0, .end = state->dst_row.size()}, request.grad_probs);
  }
  (void)group_->agree(step_of(call, kRowsRead), Phase::kCombine);
}

Received HostEngine::combine_backward(const CombineBackwardRequest& request, Stream stream) {
  follow_mask();
  Complaint complaint = checks().device_options(stream, request.num_sms, Phase::kCombine);
  std::shared_ptr<HostHandle> state = own_handle(CallAccess::state(request.handle), Phase::kCombine, complaint);
  Complaint no_buffer;
  std::shared_ptr<RowBuffer> buffer = checks().free_buffer(buffers_, "combine_backward", Phase::kCombine, no_buffer);
  if (!complaint) {
    complaint = checks().combine_backward(*state, request, buffer != nullptr ? buffer->outputs : nullptr);
  }
  if (!complaint) complaint = no_buffer;
  const Call call = call_of(CallKind::kCombineBackward, state.get(), buffer.get());
  const MoveJob job{.handle = state.get(),
                    .rows = static_cast<const std::byte*>(request.grad_out.data),
                    .row_stride = request.grad_out.stride_bytes(),
                    .scales = {},
                    .row_bytes = context_.layout().params().combine_row_bytes,
                    .scale_bytes = 0,
                    .target = BufferSection::kCombineRows,
                    .phase = Phase::kCombine,
                    .forwarded = step_of(call, kRowsForwarded)};
  // Agreed on first: gradients go where combine puts rows of a caller's before all have agreed.
  const MissingRows missing = rows_to(state.get(), context_.rank);
  const Ticket ticket = send({call, Phase::kCombine, complaint, SendOrder::kWhenAgreed, missing}, [&] {
    buffer->holder = nullptr;  // gradients are no rows that a combine may put others in the place of
    mover_->send_rows(job);
  });
  wait_for_all(*state, ticket, Phase::kCombine, missing);
  receive_rows(job);
  if (context_.config.apply_weights) {
    mover_->apply_row_weights({.handle = state.get(),
                               .saved_rows = static_cast<const std::byte*>(request.saved_rows.data),
                               .saved_stride = request.saved_rows.stride_bytes(),
                               .grad_rows = buffer->outputs,
                               .grad_weights = request.grad_weights});
  }
  return CallAccess::received(std::move(state), std::move(buffer), RowBuffer::Holds::kGradients);
}

// ---- Questions ------------------------------------------------------------------------------------------------------

Health HostEngine::poll() const noexcept { return health_of(group_->health()); }

std::vector<int> HostEngine::suspects() const { return group_->suspects(); }

WireBytes HostEngine::wire_bytes(const Handle& handle) const {
  const RoutingStats& stats = handle.wait_stats();
  return link_bytes_of(context_, static_cast<const HostHandle&>(*CallAccess::state(handle)), stats);
}

std::string HostEngine::describe_tuning(std::int64_t num_tokens) const {
  return fmt::format("dispatcher '{}' on the host: {} worker(s); calls of {} tokens are not tuned",
                     identity().info->name(), context_.pool.num_workers(), num_tokens);
}

}  // namespace epistle::host
