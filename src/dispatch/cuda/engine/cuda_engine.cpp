#include "dispatch/cuda/engine/cuda_engine.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <utility>

#include <fmt/format.h>

#include "dispatch/cuda/engine/few_launch.hpp"
#include "dispatch/cuda/engine/sizes.hpp"
#include "dispatch/cuda/quotas/batch_quotas.hpp"
#include "gpu/cuda_error.hpp"

namespace epistle {

CudaSupport cuda_support() {
  CudaSupport support{.compiled = true, .num_devices = 0, .reason = {}};
  const cudaError_t error = cudaGetDeviceCount(&support.num_devices);
  if (error != cudaSuccess) {
    support.num_devices = 0;
    support.reason = fmt::format("CUDA finds no GPU: {} ({})", cudaGetErrorString(error), cudaGetErrorName(error));
    static_cast<void>(cudaGetLastError());
  } else if (support.num_devices == 0) {
    support.reason = "CUDA finds no GPU";
  }
  return support;
}

}  // namespace epistle

namespace epistle::cuda {
namespace {

std::atomic<std::uint64_t> next_dispatcher_id{1};

constexpr std::int64_t kMinTokensPerBlock = 64;

/// Kernels of ranks that share a GPU wait for each other, so their streams must not share a hardware queue. The driver
/// reads the number of queues once, when CUDA starts.
/// Done when the library is loaded, so that asking a question changes nothing.
const int kAskedForQueues = ::setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);

/// What every rank must know of the others' devices before memory is laid out.
struct DeviceFacts {
  std::int64_t granularity = 0;
  std::int32_t sm_share = 0;
  std::int32_t device = 0;
  std::int32_t shares_gpu = 0;  ///< after gathering: some ranks of the group do
};

DeviceFacts gather_facts(GroupImpl& group, int device) {
  DeviceFacts own;
  int num_sms = 0;
  const auto error = attempt([&] {
    check_cuda(cudaSetDevice(device), "choosing the device of this rank");
    check_cuda(cudaFree(nullptr), "starting CUDA on the device of this rank");
    own.device = device;
    own.granularity = SymmetricHeap::granularity(device);
    check_cuda(cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device),
               "asking for the number of SMs");
  });
  const std::vector<DeviceFacts> all = group.gather(kGpuSetUp, Phase::kCreate, own, error);
  // Ranks of one process that share a GPU share its SMs, so that their kernels are resident together.
  const auto ranks_here = std::count_if(all.begin(), all.end(), [&](const DeviceFacts& other) {
    return group.kind() == GroupKind::kThreads && other.device == device;
  });
  own.sm_share =
      std::min(num_sms / static_cast<int>(std::max<std::ptrdiff_t>(1, ranks_here)), DeviceControl::kMaxBlocks);
  own.shares_gpu = ranks_here > 1 ? 1 : 0;
  for (const DeviceFacts& other : group.gather(kGpuSetUp, Phase::kCreate, own)) {
    own.granularity = std::max(own.granularity, other.granularity);
    own.sm_share = std::min(own.sm_share, other.sm_share);
    own.shares_gpu = std::max(own.shares_gpu, other.shares_gpu);
  }
  if (own.sm_share < 1) {
    throw Error(ErrorCode::kUnsupported,
                fmt::format("{} ranks on GPU {} are more than its {} SMs", ranks_here, device, num_sms),
                {.rank = group.rank(), .phase = Phase::kCreate});
  }
  return own;
}

}  // namespace

int choose_device(const CudaOptions& options, const GroupImpl& group) {
  const CudaSupport support = cuda_support();
  if (support.num_devices == 0) throw Error(ErrorCode::kUnsupported, support.reason);
  if (options.device >= support.num_devices) {
    throw Error(ErrorCode::kInvalidArgument, fmt::format("device {} of {} visible GPUs; they are numbered from 0",
                                                         options.device, support.num_devices));
  }
  if (options.device >= 0) return options.device;
  int rank = 0;
  int num_ranks = 0;
  for (int peer = 0; peer < group.num_ranks(); ++peer) {
    if (group.host_of(peer) != group.host_of(group.rank())) continue;
    ++num_ranks;
    rank += peer < group.rank() ? 1 : 0;
  }
  if (num_ranks <= support.num_devices) return rank;
  return static_cast<int>(std::int64_t{rank} * support.num_devices / num_ranks);
}

void check_cuda_options(const ResolvedConfig& config, const CudaOptions& options, const Group& group) {
  if (options.num_sms < 0) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("an SM budget of {}; it is 0 (as the tuning table says) or more", options.num_sms));
  }
  static_cast<void>(choose_tile_for(config, group.size(), choose_device(options, group.impl())));
}

void check_no_row_flags(const CudaOptions& options, std::string_view dispatcher) {
  if (!options.row_flags) return;
  throw Error(ErrorCode::kUnsupported,
              fmt::format("dispatcher '{}' raises no flags of rows (CudaOptions::row_flags); use low_latency, or leave "
                          "the option out",
                          dispatcher));
}

PrepareTile choose_tile_for(const ResolvedConfig& config, int num_ranks, int device) {
  // Some is left for what kernels declare themselves.
  constexpr std::int64_t kStaticBytes = 1024;
  int shared_bytes = 0;
  check_cuda(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
             "asking for the shared memory of the device");
  const PrepareTile tile =
      choose_prepare_tile({.num_ranks = num_ranks, .num_experts = config.num_columns(num_ranks), .top_k = config.top_k},
                          shared_bytes - kStaticBytes);
  if (tile.num_tokens > 0) return tile;
  throw Error(ErrorCode::kUnsupported,
              fmt::format("{} {} on {} ranks with top-{} need {} bytes of shared memory; GPU {} has {}",
                          config.num_columns(num_ranks), config.places_experts() ? "slots" : "experts", num_ranks,
                          config.top_k, tile.shared_bytes, device, shared_bytes));
}

std::uint64_t CudaEngine::new_dispatcher_id() noexcept {
  return next_dispatcher_id.fetch_add(1, std::memory_order_relaxed);
}

CudaEngine::CudaEngine(const Creation& creation, const PlanRules& rules, MakeTransport make_transport)
    : DispatcherImpl(creation.identity),
      group_(creation.group),
      mask_version_(group_->mask_version()),
      demands_(static_cast<std::size_t>(group_->num_ranks())),
      dispatcher_id_(new_dispatcher_id()) {
  context_.config = creation.config;
  context_.options = std::get<CudaOptions>(creation.options);
  context_.group = group_.get();
  context_.device = choose_device(context_.options, *group_);
  context_.wait = [this] { wait(); };
  context_.last_work = [this] { return last_work(); };
  set_up(rules);
  transport_ = make_transport(context_);
  for (std::int32_t idx = 0; idx < context_.config.num_buffers; ++idx) {
    buffers_.at(idx)->flags = transport_->row_flags(idx);
  }
}

/// Collective.
void CudaEngine::set_up(const PlanRules& rules) {
  const DeviceFacts facts = gather_facts(*group_, context_.device);
  const DeviceShape shape{
      .num_ranks = group_->num_ranks(), .page_bytes = facts.granularity, .sm_share = facts.sm_share};
  context_.sm_share = facts.sm_share;
  context_.shares_gpu = facts.shares_gpu != 0;
  context_.control = control_of(context_.config, shape);
  few_tokens_ = few_tokens_of(context_.config, shape);
  context_.plan = plan_buffers(context_.config, shape, rules);
  Complaint complaint = attempt([&] {
    const DeviceGuard guard(context_.device);
    host_control_ = PinnedMemory(sizeof(HostControl));
    check_cuda(cudaDeviceGetAttribute(&context_.compute_major, cudaDevAttrComputeCapabilityMajor, context_.device),
               "asking for the compute capability");
    prepare_tile_ = choose_tile_for(context_.config, context_.num_ranks(), context_.device);
    check_cuda(load_kernels(context_.compute_major), "loading the kernels");
    experts_ = std::make_unique<DeviceExperts>(context_.device, context_.config, context_.num_ranks(), context_.rank());
    cudaEvent_t event = nullptr;
    check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "creating an event");
    last_work_.reset(event);
  });
  (void)group_->agree(kGpuSetUp, Phase::kCreate, complaint);
  take_memory();
}

CudaEngine::~CudaEngine() {
  // Kernels that wait for a rank that will not come end by their own timeout; a broken group need not wait for that.
  try {
    group_->check_usable();
  } catch (const Error&) {
    reinterpret_cast<volatile HostControl*>(host_control_.get())->abort = 1;
  }
  if (last_work_ != nullptr) {
    // On the stream before this one, and on this one.
    warn_cuda(cudaEventSynchronize(last_work_.get()), "waiting for the last work of a dispatcher");
    if (transport_ != nullptr) transport_->end();
    warn_cuda(cudaStreamSynchronize(context_.stream), "waiting for the last work of a dispatcher");
  }
  for (const auto& handle : handles_) handle->detach();
}

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
    return check_cuda(launch_few_prepare({args, few_tokens_}, choice.launch, context_.stream),
                      "launching prepare for few tokens");
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

void CudaEngine::set_placement(const Placement& placement, Stream stream) {
  const DeviceGuard guard(context_.device);
  use(stream);
  follow_mask();
  Complaint complaint = attempt([&]() -> Complaint {
    check_findings();
    if (Complaint found = checks().device_options(stream, 0, Phase::kLayout)) return found;
    if (Complaint found = checks().nothing_open(open_call_name(), Phase::kLayout)) return found;
    if (!is_capturing()) return std::nullopt;
    return complain(ErrorCode::kInvalidArgument, Phase::kLayout,
                    "the stream is being captured; set a placement between replays of the graph, which go by it");
  });
  agree_on_placement(*group_,
                     {.config = context_.config,
                      .generation = differing_generation_.value_or(this->placement().generation()),
                      .next = placement},
                     complaint);
  PlacedExperts placed;
  complaint =
      attempt([&] { placed = PlacedExperts(placement, context_.config, context_.num_ranks(), context_.rank()); });
  (void)group_->agree({.kind = CallKind::kSetPlacement, .step = 1}, Phase::kLayout, complaint);
  experts_->set(std::move(placed), context_.stream);
  differing_generation_.reset();
}

void CudaEngine::set_batch_quotas(const BatchQuotasRequest& request, Stream stream) {
  const DeviceGuard guard(context_.device);
  if (Complaint complaint = refuse_batch_quotas(request, experts_->placed())) throw Error(*complaint);
  check_cuda(launch_batch_quotas({.slots = experts_->tables(),
                                  .expert_tokens = request.expert_tokens,
                                  .rank_tokens = request.rank_tokens,
                                  .slot_tokens = request.slot_tokens,
                                  .num_experts = context_.config.num_experts,
                                  .num_ranks = context_.num_ranks(),
                                  .slots_per_rank = context_.config.slots_per_rank},
                                 stream.get()),
             "sharing out a batch");
}

// ---- Questions ------------------------------------------------------------------------------------------------------

WireBytes CudaEngine::wire_bytes(const Handle& handle) const {
  static_cast<void>(handle.wait_stats());
  const auto& state = static_cast<const CudaHandleState&>(*CallAccess::state(handle));
  WireBytes bytes = transport_->wire_bytes(state);
  if (relay_ != nullptr) bytes.header_bytes += relay_->header_bytes(state);
  return bytes;
}

std::string CudaEngine::describe_tuning(std::int64_t num_tokens) const {
  std::string text;
  for (const TunedCall call : {TunedCall::kDispatch, TunedCall::kColdDispatch, TunedCall::kCombine}) {
    TuningQuery query = context_.tuning_query(call, num_tokens);
    query.num_sms = context_.options.num_sms;
    text += describe(query) + "\n";
  }
  return text;
}

Health CudaEngine::poll() const noexcept {
  const Health health = health_of(group_->health());
  // What was found before the mask was changed is over.
  if (health != Health::kOk || is_behind_mask()) return health;
  const auto* control = reinterpret_cast<const volatile HostControl*>(host_control_.get());
  return control->report.finding == static_cast<std::uint32_t>(Finding::kNone) ? Health::kOk : Health::kTimeout;
}

std::vector<int> CudaEngine::suspects() const {
  std::vector<int> ranks = group_->suspects();
  if (!ranks.empty() || is_behind_mask()) return ranks;
  const auto* control = reinterpret_cast<const volatile HostControl*>(host_control_.get());
  return control->report.finding != 0 && control->report.peer >= 0 ? std::vector<int>{control->report.peer}
                                                                   : std::vector<int>{};
}

void CudaEngine::abort() noexcept {
  group_->abort();
  // Kernels of this rank that wait for a peer end; those of the peers when their hosts look, or by their timeout.
  reinterpret_cast<volatile HostControl*>(host_control_.get())->abort = 1;
}

}  // namespace epistle::cuda
