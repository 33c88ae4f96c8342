// CudaEngine: prepare. A handle is found for a routing, the call announced, and its kernel put on the stream.
#include <algorithm>
#include <utility>

#include "dispatch/cuda/engine/cuda_engine.hpp"
#include "dispatch/cuda/engine/few_launch.hpp"
#include "dispatch/cuda/engine/sizes.hpp"
#include "gpu/cuda_error.hpp"

namespace epistle::cuda {
namespace {

constexpr std::int64_t kMinTokensPerBlock = 64;

}  // namespace

// ---- Handles --------------------------------------------------------------------------------------------------------

CudaEngine::UnusedHandles CudaEngine::unused_handles() const {
  UnusedHandles unused;
  for (const auto& handle : handles_) {
    // Held by the list, by whoever is here, and by nobody else but the last call.
    const long own_uses = 1 + (handle == last_handle_ ? 1 : 0) + (handle == unused.oldest ? 1 : 0);
    if (handle.use_count() > own_uses) continue;
    if (handle->checked) return {.settled = handle, .oldest = nullptr};
    if (unused.oldest == nullptr || handle->prepare_id < unused.oldest->prepare_id) unused.oldest = handle;
  }
  return unused;
}

/// A handle that nobody uses. Where all are still being prepared the host is far ahead of the GPU: it waits for the
/// oldest. Not collective: a rank that fails here refuses its prepare.
std::shared_ptr<CudaHandleState> CudaEngine::acquire_handle() {
  UnusedHandles unused = unused_handles();
  if (unused.settled == nullptr && settle_passed()) {
    unused = {};
    unused = unused_handles();
  }
  if (unused.settled != nullptr) return unused.settled;
  const std::shared_ptr<CudaHandleState>& oldest = unused.oldest;
  if (oldest == nullptr || (is_capturing() && !oldest->is_complete() && !oldest->has_passed_on_device())) {
    throw complain(ErrorCode::kInvalidArgument, Phase::kLayout, all_handles_in_use(context_.config.max_handles));
  }
  if (!oldest->finished) {
    if (!is_capturing()) wait_until_complete(*oldest);
    // What has passed has nothing to tell to those who have let it go.
    if (oldest->has_summary()) {
      oldest->finish();
    } else {
      oldest->checked = true;
    }
  }
  check_summary(*oldest);
  return oldest;
}

// ---- Prepare --------------------------------------------------------------------------------------------------------

Handle CudaEngine::prepare(const PrepareRequest& request, Stream stream) {
  const DeviceGuard guard(context_.device);
  Complaint complaint = begin_call(stream, request.num_sms, Phase::kLayout);
  if (complaint) announce_call(DeviceCall::kPrepare, nullptr, complaint);
  return CallAccess::handle(prepare_for(request, Follows::kNothing, nullptr));
}

std::shared_ptr<CudaHandleState> CudaEngine::begin_routing(const PrepareRequest& request, Complaint& complaint) {
  if (!complaint) complaint = checks().nothing_open(open_call_name(), Phase::kLayout);
  if (!complaint) complaint = checks().routing(request);
  if (!complaint && differing_generation_)
    complaint = complain(ErrorCode::kShapeMismatch, Phase::kLayout, kPlacementsDiffer);
  if (complaint) return nullptr;
  try {
    return acquire_handle();
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kInvalidArgument || error.context().phase != Phase::kLayout) throw;
    complaint = error;
    return nullptr;
  }
}

/// Behind the announcement of the call.
void CudaEngine::start_routing(CudaHandleState& state, const PrepareRequest& request) {
  ++num_prepared_;
  state.dispatcher_id = dispatcher_id_;
  state.begin(num_prepared_, request.expert_ids.num_tokens, experts_->placed());
  state.captured = context_.config.places_experts() && is_capturing();
  state.attach([this](CudaHandleState& waiting, bool may_wait) {
    const DeviceGuard waiter_guard(context_.device);
    if (waiting.captured) waiting.describe(experts_->placed());
    if (may_wait) {
      wait_for_summary(waiting);
    } else {
      waiting.finish();
      waiting.checked = false;
    }
    check_summary(waiting);
  });
}

/// Behind begin_call().
std::shared_ptr<CudaHandleState> CudaEngine::prepare_for(const PrepareRequest& request, Follows follows,
                                                         const RowBuffer* follow_buffer) {
  Complaint complaint;
  const std::shared_ptr<CudaHandleState> state = begin_routing(request, complaint);
  const DeviceCall call = follows == Follows::kNothing ? DeviceCall::kPrepare : DeviceCall::kPrepareAndDispatch;
  announce_call(call, nullptr, complaint);
  start_routing(*state, request);
  launch(*state, request, follows, follow_buffer);
  if (context_.config.sizing == SizingMode::kExact) {
    wait_for_summary(*state);
    check_summary(*state);
    grow(demands_of(*state));
  }
  return state;
}

PrepareArgs CudaEngine::routing_args(const CudaHandleState& state, const PrepareRequest& request) const {
  const IdsView& ids = request.expert_ids;
  const std::int64_t top_k = context_.config.top_k;
  PrepareArgs args;
  args.group = context_.device_group;
  args.layout = context_.layout();
  args.handle = state.arrays;
  args.expert_ids = ids.data;
  args.id_stride = ids.stride != 0 ? ids.stride : top_k;
  args.weights = request.weights.data;
  args.weight_stride = request.weights.stride != 0 ? request.weights.stride : top_k;
  args.num_tokens = request.num_tokens;
  args.ids_are_64_bit = ids.type == IdType::kInt64;
  args.prepare_id = state.prepare_id;
  args.drop_overflow = context_.config.overflow == OverflowPolicy::kDrop;
  args.summary = state.summary;
  args.tile_tokens = prepare_tile_.num_tokens;
  args.num_experts = context_.config.num_experts;
  args.expert_tokens = experts_->counters();
  args.lost_tokens = experts_->lost_counters();
  args.slots = experts_->tables();
  args.first_position = first_position(context_.config.max_tokens, context_.rank());
  args.step_seed = request.step_seed;
  args.step_seed_at = request.step_seed_at;
  return args;
}

CudaEngine::PrepareChoice CudaEngine::choose_prepare(std::int64_t num_tokens) const {
  const int count_blocks = context_.control.count_blocks;
  const int budget = context_.num_sms > 0 ? context_.num_sms : count_blocks;
  const auto useful = static_cast<int>((num_tokens + kMinTokensPerBlock - 1) / kMinTokensPerBlock);
  const int num_blocks = std::clamp(useful, 1, std::min({budget, count_blocks, context_.sm_share}));
  const PrepareShape shape{
      .num_ranks = context_.num_ranks(), .num_experts = context_.control.num_experts, .top_k = context_.config.top_k};
  // Words of bits for tokens that a block does not have are cleared and counted all the same.
  const auto tile_of = [&](int blocks) {
    const auto per_block = static_cast<int>((num_tokens + blocks - 1) / blocks);
    return std::clamp(FewTokens::words_of(per_block) * FewTokens::kWordBits, FewTokens::kWordBits,
                      prepare_tile_.num_tokens);
  };
  const int few_blocks = few_tokens_.blocks_for(num_tokens, num_blocks);
  if (few_blocks > 0 && relay_ == nullptr && context_.device_group.num_masked == 0) {
    const int tile = tile_of(few_blocks);
    // The tables that come on top have the room that a smaller tile leaves.
    const bool fits = few_prepare_shared_bytes(shape, tile) <= prepare_tile_.shared_bytes;
    const bool is_one_tile = num_tokens <= std::int64_t{few_blocks} * tile;
    if (fits && is_one_tile) {
      return {.launch = {.num_blocks = few_blocks, .shared_bytes = prepare_shared_bytes(shape, tile)},
              .tile_tokens = tile,
              .few = true};
    }
  }
  const int tile = tile_of(num_blocks);
  return {.launch = {.num_blocks = num_blocks, .shared_bytes = prepare_shared_bytes(shape, tile)},
          .tile_tokens = tile,
          .few = false};
}

void CudaEngine::launch(CudaHandleState& state, const PrepareRequest& request, Follows follows,
                        const RowBuffer* follow_buffer) {
  PrepareArgs args = routing_args(state, request);
  args.call = follows == Follows::kNothing ? DeviceCall::kPrepare : DeviceCall::kPrepareAndDispatch;
  args.announces_dispatch = follows == Follows::kDispatchClosely;
  args.follow_buffer = follow_buffer != nullptr ? follow_buffer->idx : 0;
  const PrepareChoice choice = choose_prepare(state.arrays.num_tokens);
  args.tile_tokens = choice.tile_tokens;
  prepare_blocks_ = choice.launch.num_blocks;
  if (choice.few) {
    // Under exact sizing the host waits for the counts, and sees them sooner where the device writes them to it.
    state.is_left_on_device = context_.config.sizing == SizingMode::kCapacity;
    const FewPrepareArgs few{args, few_tokens_, state.is_left_on_device};
    return check_cuda(launch_few_prepare(few, choice.launch, context_.stream), "launching prepare for few tokens");
  }
  const auto start = [&](const PrepareArgs& run) {
    check_cuda(launch_prepare(run, choice.launch, context_.stream), "launching prepare");
  };
  if (relay_ == nullptr) return start(args);
  try {
    relay_->prepare(state, args, start);
  } catch (const Error&) {
    // Nobody has the handle, and nothing will be told of it.
    state.finished = true;
    state.checked = true;
    throw;
  }
}

std::vector<RowDemand> CudaEngine::demands_of(CudaHandleState& handle) {
  std::vector<RowDemand> demands(static_cast<std::size_t>(context_.num_ranks()));
  for (int peer = 0; peer < context_.num_ranks(); ++peer) {
    RowDemand& demand = demands[static_cast<std::size_t>(peer)];
    demand.output_rows = handle.output_rows(peer);
    demand.grad_rows = handle.output_rows(peer);
    demand.send_pairs = handle.other_pairs(peer);
  }
  transport_->raise_demands(handle, demands);
  return demands;
}

}  // namespace epistle::cuda
