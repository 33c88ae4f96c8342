#include "dispatch/host/engine/collective_dispatcher.hpp"

#include <array>
#include <atomic>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "dispatch/call/config_check.hpp"

namespace epistle {
namespace {

// Distinguishes the dispatchers of a process, so that a handle of another one is noticed.
std::atomic<std::uint64_t> next_dispatcher_id{1};

/// "dispatch" or "combine"; empty for no call.
std::string_view name_of(CallKind call) noexcept {
  if (call == CallKind::kNone) return {};
  return call == CallKind::kDispatch ? "dispatch" : "combine";
}

std::array<std::int64_t, kNumBufferSections> section_offsets_of(const DispatchLayout& layout) {
  std::array<std::int64_t, kNumBufferSections> offsets{};
  for (std::int32_t section = 0; section < kNumBufferSections; ++section) {
    offsets[static_cast<std::size_t>(section)] = layout.section_offset(static_cast<BufferSection>(section));
  }
  return offsets;
}

}  // namespace

CollectiveDispatcher::CollectiveDispatcher(Group& group, const DispatcherConfig& config, Transport transport)
    : config_(config),
      layout_(to_layout_params(config, group.size(), transport)),
      group_owner_(group.share()),
      group_(group_owner_.get()),
      section_offsets_(section_offsets_of(layout_)),
      region_(group_->create_region(layout_.reserved_bytes())),
      number_(static_cast<std::uint64_t>(group_->num_regions())),
      dispatcher_id_(next_dispatcher_id.fetch_add(1, std::memory_order_relaxed)) {
  const auto ranks = static_cast<std::size_t>(num_ranks());
  const auto experts = static_cast<std::size_t>(config.num_experts);
  group_->ask_for_memory(layout_.buffer_bytes(layout_.initial_demand()), Phase::kCreate);
  commit(layout_.initial_demand());
  demands_.assign(ranks, layout_.initial_demand());
  wanted_.resize(ranks);
  count_views_.resize(ranks);
  rank_of_expert_.resize(experts);
  for (std::int32_t expert = 0; expert < config.num_experts; ++expert) {
    rank_of_expert_[static_cast<std::size_t>(expert)] = layout_.partition().rank_of(expert);
  }
  last_token_of_expert_.resize(experts);
  last_token_to_rank_.resize(ranks);
  num_placed_.resize(layout_.token_major() ? ranks : experts);
  send_of_rank_.resize(ranks);
  next_row_.resize(ranks);
  rank_of_position_.resize(static_cast<std::size_t>(config.top_k));
}

HandleState* CollectiveDispatcher::own_state(const Handle& handle, Phase phase, Complaint& complaint) const {
  HandleState* state = handle.state();
  const bool own = state != nullptr && state->dispatcher_id == dispatcher_id_;
  complaint = checks().handle(handle, own, name(), name_of(open_call_), phase);
  return complaint ? nullptr : state;
}

void CollectiveDispatcher::check_call_open(CallKind call, const Handle& handle) const {
  if (open_call_ == call && handle.state() == open_state_) return;
  throw checks().nothing_sent(name_of(call), call == CallKind::kDispatch ? Phase::kDispatch : Phase::kCombine);
}

void CollectiveDispatcher::commit(const RowDemand& demand) {
  RowDemand raised = committed_;
  raised.raise_to(demand);
  for (std::int32_t idx = 0; idx < kNumBufferSections; ++idx) {
    const auto wanted = static_cast<BufferSection>(idx);
    // The control section is needed whatever the demand.
    const bool empty = wanted == BufferSection::kControl && !control_committed_;
    const std::int64_t have = empty ? 0 : layout_.section_bytes(wanted, committed_);
    const std::int64_t need = layout_.section_bytes(wanted, raised);
    if (need > have) region_.commit(layout_.section_offset(wanted) + have, need - have);
  }
  control_committed_ = true;
  committed_ = raised;
}

void CollectiveDispatcher::grow(const std::vector<RowDemand>& demands, const Call& call, Phase phase) {
  // Every rank knows every rank's demand, hence whether somebody has to grow.
  bool someone_grows = false;
  for (std::size_t peer = 0; peer < demands.size(); ++peer) {
    RowDemand raised = demands_[peer];
    raised.raise_to(demands[peer]);
    someone_grows = someone_grows || layout_.buffer_bytes(raised) > layout_.buffer_bytes(demands_[peer]);
  }
  if (someone_grows) {
    const RowDemand& own = demands[static_cast<std::size_t>(rank())];
    RowDemand raised = committed_;
    raised.raise_to(own);
    group_->ask_for_memory(layout_.buffer_bytes(raised) - layout_.buffer_bytes(committed_), phase);
    group_->take_together(call, phase, [&] { commit(own); });
  }
  for (std::size_t peer = 0; peer < demands.size(); ++peer) demands_[peer].raise_to(demands[peer]);
}

WireBytes CollectiveDispatcher::wire_bytes(const Handle& handle) const {
  const RoutingStats& stats = handle.stats();
  const LayoutParams& params = layout_.params();
  const std::int64_t dispatched = layout_.sends_per_expert() ? stats.sent_remote_assignments : stats.sent_remote_rows;
  const std::int64_t combined = layout_.combines_per_rank() ? stats.sent_remote_rows : stats.sent_remote_assignments;
  return {.dispatch = dispatched * (params.row_bytes + params.scale_bytes),
          .combine = combined * params.combine_row_bytes};
}

// ---- Dispatch -------------------------------------------------------------------------------------------------------

void CollectiveDispatcher::dispatch_send(const Handle& handle, const Payload& payload) {
  Complaint complaint;
  const HandleState* state = own_state(handle, Phase::kDispatch, complaint);
  const LayoutParams& params = layout_.params();
  if (state != nullptr) complaint = checks().payload(state->stats.num_tokens, payload);
  const Call call = call_of(CallKind::kDispatch, state);
  (void)group_->agree(call, Phase::kDispatch, complaint);
  open_move_ = MoveJob{.handle = state,
                       .rows = static_cast<const std::byte*>(payload.rows),
                       .scales = static_cast<const std::byte*>(payload.scales),
                       .row_bytes = params.row_bytes,
                       .scale_bytes = params.scale_bytes,
                       .target = BufferSection::kReceiveRows};
  send_rows(open_move_);
  open_ticket_ = group_->arrive(call);
  open_call_ = CallKind::kDispatch;
  open_state_ = state;
}

const DispatchOutput& CollectiveDispatcher::dispatch_receive(const Handle& handle) {
  check_call_open(CallKind::kDispatch, handle);
  open_call_ = CallKind::kNone;
  finish_move(open_move_);
  HandleState& state = *handle.state();
  state.output.rows = own_section(BufferSection::kReceiveRows);
  state.output.scales = layout_.params().scale_bytes > 0 ? own_section(BufferSection::kReceiveScales) : nullptr;
  return state.output;
}

void CollectiveDispatcher::finish_move(const MoveJob& job) {
  const HandleState& state = *job.handle;
  const MissingRows missing = [&state, this](int peer) { return std::int64_t{state.num_pairs(peer, rank())}; };
  group_->wait(open_ticket_, job.target == BufferSection::kReceiveRows ? Phase::kDispatch : Phase::kCombine, &missing);
  receive_rows(job);
  zero_padding(state, job.target, job.row_bytes);
  if (job.scale_bytes > 0) zero_padding(state, BufferSection::kReceiveScales, job.scale_bytes);
}

void CollectiveDispatcher::zero_padding(const HandleState& state, BufferSection target, std::int64_t row_bytes) const {
  if (!config_.zero_padding) return;
  std::byte* rows = own_section(target);
  const auto zero = [&](std::int64_t begin, std::int64_t end) {
    if (begin < end) std::memset(rows + begin * row_bytes, 0, static_cast<std::size_t>((end - begin) * row_bytes));
  };
  const std::int64_t num_rows = state.output.num_rows;
  if (layout_.token_major()) {
    zero(state.stats.output_rows, num_rows);
    return;
  }
  for (std::size_t expert = 0; expert < state.expert_counts.size(); ++expert) {
    zero(state.expert_begin[expert] + state.expert_counts[expert], state.expert_begin[expert + 1]);
  }
  zero(state.expert_begin.back(), num_rows);
}

// ---- Combine --------------------------------------------------------------------------------------------------------

void CollectiveDispatcher::stage_combine_rows(const HandleState& state, const void* rows) {
  std::byte* target = own_section(BufferSection::kCombineRows);
  if (rows != target) copy_rows(static_cast<const std::byte*>(rows), target, state.output.num_rows);
}

void CollectiveDispatcher::start_combine(const HandleState& state, const void* rows) {
  stage_combine_rows(state, rows);
  send_sums({.handle = &state, .weighted = config_.apply_weights});
  open_ticket_ = group_->arrive(call_of(CallKind::kCombine, &state));
}

void CollectiveDispatcher::finish_combine(const HandleState& state, void* out, const Complaint& complaint) {
  const MissingRows missing = [&state, this](int peer) { return std::int64_t{state.num_pairs(rank(), peer)}; };
  group_->wait(open_ticket_, Phase::kCombine, &missing);
  if (!complaint) {
    receive_sums({.handle = &state, .weighted = config_.apply_weights, .out = static_cast<std::byte*>(out)});
  }
  (void)group_->agree(call_of(CallKind::kCombine, &state), Phase::kCombine, complaint);
}

void CollectiveDispatcher::combine(const Handle& handle, const void* rows, void* out, std::int64_t out_bytes) {
  Complaint complaint;
  const HandleState* state = own_state(handle, Phase::kCombine, complaint);
  if (state != nullptr) complaint = checks().expert_outputs(*state, rows);
  if (!complaint) complaint = checks().sums(*state, out, out_bytes);
  (void)group_->agree(call_of(CallKind::kCombine, state), Phase::kCombine, complaint);
  start_combine(*state, rows);
  finish_combine(*state, out, std::nullopt);
}

void CollectiveDispatcher::combine_send(const Handle& handle, const void* rows) {
  Complaint complaint;
  const HandleState* state = own_state(handle, Phase::kCombine, complaint);
  if (state != nullptr) complaint = checks().expert_outputs(*state, rows);
  (void)group_->agree(call_of(CallKind::kCombine, state), Phase::kCombine, complaint);
  start_combine(*state, rows);
  open_call_ = CallKind::kCombine;
  open_state_ = state;
}

void CollectiveDispatcher::combine_receive(const Handle& handle, void* out, std::int64_t out_bytes) {
  check_call_open(CallKind::kCombine, handle);
  open_call_ = CallKind::kNone;
  const HandleState& state = *handle.state();
  finish_combine(state, out, checks().sums(state, out, out_bytes));
}

// ---- Backward -------------------------------------------------------------------------------------------------------

void CollectiveDispatcher::dispatch_backward(const Handle& handle, const void* grad_rows, const float* grad_weights,
                                             void* grad_out, std::int64_t grad_out_bytes, float* grad_topk_weights) {
  Complaint complaint;
  const HandleState* state = own_state(handle, Phase::kCombine, complaint);
  const bool gives = state != nullptr && state->output.num_rows > 0 && grad_weights != nullptr;
  const bool takes = state != nullptr && state->stats.num_tokens > 0 && grad_topk_weights != nullptr;
  // All ranks give and take gradients of the weights, or none; one that has neither rows nor tokens goes with either.
  std::int64_t value = gives || takes ? 1 : 0;
  if (state != nullptr) {
    if (state->output.num_rows == 0 && state->stats.num_tokens == 0) value = kAnyValue;
    complaint =
        checks().dispatch_backward(*state, grad_rows, grad_weights, grad_out, grad_out_bytes, grad_topk_weights);
  }
  const Call call = call_of(CallKind::kDispatchBackward, state, value);
  if (group_->agree(call, Phase::kCombine, complaint) == 1) {
    for (int peer = 0; peer < num_ranks(); ++peer) {
      wanted_[static_cast<std::size_t>(peer)] = {.grad_rows = state->tables.output_rows(peer)};
    }
    grow(wanted_, call, Phase::kCombine);
  }
  stage_combine_rows(*state, grad_rows);
  if (gives) {
    std::memcpy(own_section(BufferSection::kGradWeights), grad_weights,
                static_cast<std::size_t>(state->output.num_rows * layout_.weights_per_row()) * sizeof(float));
  }
  const SumRequest request{.handle = state, .weighted = false, .out = static_cast<std::byte*>(grad_out)};
  send_sums(request);
  open_ticket_ = group_->arrive(call);
  const MissingRows missing = [state, this](int peer) { return std::int64_t{state->num_pairs(rank(), peer)}; };
  group_->wait(open_ticket_, Phase::kCombine, &missing);
  receive_sums(request);
  if (takes) gather_weight_gradients(*state, grad_topk_weights);
  (void)group_->agree(call, Phase::kCombine);
}

void CollectiveDispatcher::gather_weight_gradients(const HandleState& state, float* grad_topk_weights) const {
  const auto top_k = static_cast<std::size_t>(config_.top_k);
  const auto per_row = static_cast<std::size_t>(layout_.weights_per_row());
  for (std::size_t idx = 0; idx < state.dst_row.size(); ++idx) {
    const std::int32_t row = state.dst_row[idx];
    if (row < 0) {
      grad_topk_weights[idx] = 0.0F;
      continue;
    }
    const int expert_rank = rank_of_expert_[static_cast<std::size_t>(state.expert_ids[idx])];
    const auto* gradients = reinterpret_cast<const float*>(section(expert_rank, BufferSection::kGradWeights));
    const std::size_t column = layout_.token_major() ? idx % top_k : 0;
    grad_topk_weights[idx] = gradients[static_cast<std::size_t>(row) * per_row + column];
  }
}

const std::byte* CollectiveDispatcher::combine_backward(const Handle& handle, const void* grad_out,
                                                        const void* saved_rows, float* grad_weights) {
  Complaint complaint;
  const HandleState* state = own_state(handle, Phase::kCombine, complaint);
  if (state != nullptr) {
    complaint =
        checks().combine_backward(*state, grad_out, saved_rows, grad_weights, own_section(BufferSection::kCombineRows));
  }
  const Call call = call_of(CallKind::kCombineBackward, state);
  (void)group_->agree(call, Phase::kCombine, complaint);
  const MoveJob job{.handle = state,
                    .rows = static_cast<const std::byte*>(grad_out),
                    .row_bytes = layout_.params().combine_row_bytes,
                    .target = BufferSection::kCombineRows};
  send_rows(job);
  open_ticket_ = group_->arrive(call);
  finish_move(job);
  std::byte* grad_rows = own_section(BufferSection::kCombineRows);
  if (config_.apply_weights) {
    apply_row_weights(*state, static_cast<const std::byte*>(saved_rows), grad_rows,
                      saved_rows != nullptr ? grad_weights : nullptr);
  }
  return grad_rows;
}

}  // namespace epistle
