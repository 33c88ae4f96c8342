#include "dispatch/collective_dispatcher.hpp"

#include <array>
#include <atomic>
#include <cstring>
#include <new>
#include <utility>

#include <fmt/format.h>

#include "dispatch/config_check.hpp"

namespace epistle {
namespace {

// Distinguishes the dispatchers of a process, so that a handle of another one is noticed.
std::atomic<std::uint64_t> next_dispatcher_id{1};

// An announced value that agrees with every other.
constexpr std::int64_t kAnyValue = -1;

constexpr std::array<std::string_view, 6> kCallNames = {"nothing", "prepare",           "dispatch",
                                                        "combine", "dispatch_backward", "combine_backward"};

std::array<std::int64_t, kNumBufferSections> section_offsets_of(const DispatchLayout& layout) {
  std::array<std::int64_t, kNumBufferSections> offsets{};
  for (std::int32_t section = 0; section < kNumBufferSections; ++section) {
    offsets[static_cast<std::size_t>(section)] = layout.section_offset(static_cast<BufferSection>(section));
  }
  return offsets;
}

}  // namespace

/// What a rank announces before a call; lies in its control section.
struct CollectiveDispatcher::Post {
  Call call;
  ErrorCode status;
  std::uint64_t handle_id;
  std::int64_t value;  ///< tokens, or flags that must agree
  static constexpr std::size_t kMessageBytes = DispatchLayout::kPostBytes - 24;
  std::array<char, kMessageBytes> message;
};

CollectiveDispatcher::CollectiveDispatcher(Group& group, const DispatcherConfig& config, Transport transport)
    : config_(config),
      layout_(to_layout_params(config, group.size(), transport)),
      group_owner_(group.share()),
      group_(group_owner_.get()),
      section_offsets_(section_offsets_of(layout_)),
      region_(group_->create_region(layout_.reserved_bytes())),
      dispatcher_id_(next_dispatcher_id.fetch_add(1, std::memory_order_relaxed)) {
  static_assert(sizeof(Post) <= DispatchLayout::kPostBytes);
  static_assert(sizeof(PaddedCounter) == DispatchLayout::kCounterBytes);
  static_assert(sizeof(BarrierBlock) == DispatchLayout::kCounterBytes * DispatchLayout::kNumBarrierCounters);
  const auto ranks = static_cast<std::size_t>(num_ranks());
  const auto experts = static_cast<std::size_t>(config.num_experts);
  // Zero-filled shared memory is a barrier that nobody has passed yet.
  barrier_ =
      Barrier(std::launder(reinterpret_cast<BarrierBlock*>(section(0, BufferSection::kControl))), rank(), num_ranks());
  Complaint complaint = try_commit(layout_.initial_demand());
  max_output_rows_.assign(ranks, layout_.initial_demand().output_rows);
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
  agree(Call::kNone, Phase::kCreate, 0, 0, complaint);
}

CollectiveDispatcher::Post& CollectiveDispatcher::post(int rank, std::uint64_t generation) const noexcept {
  return *std::launder(
      reinterpret_cast<Post*>(section(rank, BufferSection::kControl) + layout_.post_offset(generation)));
}

void CollectiveDispatcher::announce(Call call, std::uint64_t handle_id, std::int64_t value,
                                    const Complaint& complaint) {
  Post& own = post(rank(), generation_);
  own.call = call;
  own.handle_id = handle_id;
  own.value = value;
  own.status = complaint ? complaint->code() : ErrorCode::kOk;
  if (complaint) {
    std::strncpy(own.message.data(), complaint->what(), Post::kMessageBytes - 1);
    own.message.back() = '\0';
  }
}

void CollectiveDispatcher::check_announcements(Phase phase, const Complaint& complaint) const {
  if (complaint) throw Error(*complaint);
  // Compared with rank 0 rather than with this rank, so that all ranks come to the same verdict.
  const Post& first = post(0, generation_);
  std::int64_t agreed_value = kAnyValue;
  for (int peer = 0; peer < num_ranks(); ++peer) {
    const Post& other = post(peer, generation_);
    const Error::Context context{.rank = rank(), .peer_rank = peer, .phase = phase};
    if (other.status != ErrorCode::kOk) {
      throw Error(ErrorCode::kPeerRejected,
                  fmt::format("rank {} rejected its input, so nothing was sent ({})", peer, other.message.data()),
                  context);
    }
    if (other.call != first.call || other.handle_id != first.handle_id) {
      throw Error(ErrorCode::kShapeMismatch,
                  fmt::format("rank 0 calls {} (handle {}), rank {} calls {} (handle {}); all ranks must make the same "
                              "calls in the same order; nothing was sent",
                              kCallNames[static_cast<std::size_t>(first.call)], first.handle_id, peer,
                              kCallNames[static_cast<std::size_t>(other.call)], other.handle_id),
                  context);
    }
    if (agreed_value == kAnyValue) agreed_value = other.value;
    if (other.value == kAnyValue || other.value == agreed_value) continue;
    throw Error(ErrorCode::kShapeMismatch,
                fmt::format("some ranks give gradients of the weights to {}, others do not (seen at rank {}); all or "
                            "none must; nothing was sent",
                            kCallNames[static_cast<std::size_t>(first.call)], peer),
                context);
  }
}

void CollectiveDispatcher::agree(Call call, Phase phase, std::uint64_t handle_id, std::int64_t value,
                                 const Complaint& complaint) {
  group_->check_usable();
  // A send half whose receive half was left out has arrived and not waited; arriving twice would let the others go on
  // before all ranks have sent.
  if (open_call_ != Call::kNone) group_->wait(barrier_, phase);
  // Two generations of posts: this slot was last read before the agreement in between, which every rank has passed.
  ++generation_;
  announce(call, handle_id, value, complaint);
  arrive_and_wait(phase);
  check_announcements(phase, complaint);
}

void CollectiveDispatcher::arrive_and_wait(Phase phase) {
  barrier_.arrive();
  group_->wait(barrier_, phase);
}

HandleState* CollectiveDispatcher::own_state(const Handle& handle, Phase phase, Complaint& complaint) const {
  HandleState* state = handle.state();
  const std::string_view open =
      open_call_ == Call::kNone ? std::string_view() : kCallNames[static_cast<std::size_t>(open_call_)];
  complaint = checks().handle(handle, state != nullptr && state->dispatcher_id == dispatcher_id_, name(), open, phase);
  return complaint ? nullptr : state;
}

void CollectiveDispatcher::check_call_open(Call call, const Handle& handle) const {
  if (open_call_ == call && handle.state() == open_state_) return;
  throw checks().nothing_sent(kCallNames[static_cast<std::size_t>(call)],
                              call == Call::kDispatch ? Phase::kDispatch : Phase::kCombine);
}

Complaint CollectiveDispatcher::try_commit(const RowDemand& demand) {
  try {
    commit(demand);
  } catch (const Error& error) {
    return error;
  }
  return std::nullopt;
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
  agree(Call::kDispatch, Phase::kDispatch, state != nullptr ? state->handle_id : 0, 0, complaint);
  open_move_ = MoveJob{.handle = state,
                       .rows = static_cast<const std::byte*>(payload.rows),
                       .scales = static_cast<const std::byte*>(payload.scales),
                       .row_bytes = params.row_bytes,
                       .scale_bytes = params.scale_bytes,
                       .target = BufferSection::kReceiveRows};
  send_rows(open_move_);
  barrier_.arrive();
  open_call_ = Call::kDispatch;
  open_state_ = state;
}

const DispatchOutput& CollectiveDispatcher::dispatch_receive(const Handle& handle) {
  check_call_open(Call::kDispatch, handle);
  open_call_ = Call::kNone;
  finish_move(open_move_);
  HandleState& state = *handle.state();
  state.output.rows = own_section(BufferSection::kReceiveRows);
  state.output.scales = layout_.params().scale_bytes > 0 ? own_section(BufferSection::kReceiveScales) : nullptr;
  return state.output;
}

void CollectiveDispatcher::finish_move(const MoveJob& job) {
  const HandleState& state = *job.handle;
  const MissingRows missing = [&state, this](int peer) { return std::int64_t{state.num_pairs(peer, rank())}; };
  group_->wait(barrier_, job.target == BufferSection::kReceiveRows ? Phase::kDispatch : Phase::kCombine, &missing);
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

void CollectiveDispatcher::combine_send(const Handle& handle, const void* rows) {
  Complaint complaint;
  const HandleState* state = own_state(handle, Phase::kCombine, complaint);
  if (state != nullptr) complaint = checks().expert_outputs(*state, rows);
  agree(Call::kCombine, Phase::kCombine, state != nullptr ? state->handle_id : 0, 0, complaint);
  stage_combine_rows(*state, rows);
  send_sums({.handle = state, .weighted = config_.apply_weights});
  barrier_.arrive();
  open_call_ = Call::kCombine;
  open_state_ = state;
}

void CollectiveDispatcher::combine_receive(const Handle& handle, void* out, std::int64_t out_bytes) {
  check_call_open(Call::kCombine, handle);
  open_call_ = Call::kNone;
  const HandleState& state = *handle.state();
  const MissingRows missing = [&state, this](int peer) { return std::int64_t{state.num_pairs(rank(), peer)}; };
  group_->wait(barrier_, Phase::kCombine, &missing);
  const Complaint complaint = checks().sums(state, out, out_bytes);
  if (!complaint) {
    receive_sums({.handle = &state, .weighted = config_.apply_weights, .out = static_cast<std::byte*>(out)});
  }
  // Nobody may write new expert outputs while another rank still reads the old ones.
  arrive_and_wait(Phase::kCombine);
  if (complaint) throw Error(*complaint);
}

// ---- Backward -------------------------------------------------------------------------------------------------------

void CollectiveDispatcher::dispatch_backward(const Handle& handle, const void* grad_rows, const float* grad_weights,
                                             void* grad_out, std::int64_t grad_out_bytes, float* grad_topk_weights) {
  Complaint complaint;
  const HandleState* state = own_state(handle, Phase::kCombine, complaint);
  const bool gives = state != nullptr && state->output.num_rows > 0 && grad_weights != nullptr;
  const bool takes = state != nullptr && state->stats.num_tokens > 0 && grad_topk_weights != nullptr;
  // All ranks give and take gradients of the weights, or none; one that has neither rows nor tokens goes with either.
  std::int64_t announced = gives || takes ? 1 : 0;
  if (state != nullptr) {
    if (state->output.num_rows == 0 && state->stats.num_tokens == 0) announced = kAnyValue;
    complaint =
        checks().dispatch_backward(*state, grad_rows, grad_weights, grad_out, grad_out_bytes, grad_topk_weights);
    if (!complaint && gives) complaint = try_commit({.grad_rows = state->output.num_rows});
  }
  agree(Call::kDispatchBackward, Phase::kCombine, state != nullptr ? state->handle_id : 0, announced, complaint);
  stage_combine_rows(*state, grad_rows);
  if (gives) {
    std::memcpy(own_section(BufferSection::kGradWeights), grad_weights,
                static_cast<std::size_t>(state->output.num_rows * layout_.weights_per_row()) * sizeof(float));
  }
  const SumRequest request{.handle = state, .weighted = false, .out = static_cast<std::byte*>(grad_out)};
  send_sums(request);
  barrier_.arrive();
  const MissingRows missing = [state, this](int peer) { return std::int64_t{state->num_pairs(rank(), peer)}; };
  group_->wait(barrier_, Phase::kCombine, &missing);
  receive_sums(request);
  if (takes) gather_weight_gradients(*state, grad_topk_weights);
  arrive_and_wait(Phase::kCombine);
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
  agree(Call::kCombineBackward, Phase::kCombine, state != nullptr ? state->handle_id : 0, 0, complaint);
  const MoveJob job{.handle = state,
                    .rows = static_cast<const std::byte*>(grad_out),
                    .row_bytes = layout_.params().combine_row_bytes,
                    .target = BufferSection::kCombineRows};
  send_rows(job);
  barrier_.arrive();
  finish_move(job);
  std::byte* grad_rows = own_section(BufferSection::kCombineRows);
  if (config_.apply_weights) {
    apply_row_weights(*state, static_cast<const std::byte*>(saved_rows), grad_rows,
                      saved_rows != nullptr ? grad_weights : nullptr);
  }
  return grad_rows;
}

}  // namespace epistle
