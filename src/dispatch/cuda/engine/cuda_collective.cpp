#include "dispatch/cuda/engine/cuda_collective.hpp"

#include <algorithm>
#include <atomic>
#include <utility>

#include <fmt/format.h>

#include "dispatch/call/config_check.hpp"
#include "gpu/cuda_error.hpp"
#include "gpu/heap/heap_agreement.hpp"

namespace epistle::cuda {
namespace {

std::atomic<std::uint64_t> next_dispatcher_id{1};

// Blocks that count in prepare: enough that each has few tokens, few enough that all can read all counts quickly.
constexpr int kMaxCountPlaces = 128;
constexpr std::int64_t kMinTokensPerBlock = 64;
constexpr std::uint64_t kNsPerMs = 1'000'000;
// Handles made in advance where ranks share a GPU; see acquire_handle().
constexpr int kHandlesOnSharedGpu = 8;

int count_blocks_for(int num_ranks, int sm_share) {
  return std::clamp(std::min(kMaxCountPlaces / num_ranks, sm_share), 1, kMaxPrepareBlocks);
}

DeviceControl make_control(const DispatcherConfig& config, int num_ranks, int count_blocks) {
  return {.num_ranks = num_ranks,
          .num_experts = config.num_experts,
          .top_k = config.top_k,
          .max_tokens = config.max_tokens,
          .count_blocks = count_blocks};
}

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
  const std::vector<DeviceFacts> all = agree(group, error, "starting CUDA", own);
  // Ranks of one process that share a GPU share its SMs, so that their kernels are resident together.
  const auto ranks_here = std::count_if(all.begin(), all.end(), [&](const DeviceFacts& other) {
    return group.kind() == GroupKind::kThreads && other.device == device;
  });
  own.sm_share =
      std::min(num_sms / static_cast<int>(std::max<std::ptrdiff_t>(1, ranks_here)), DeviceControl::kMaxBlocks);
  own.shares_gpu = ranks_here > 1 ? 1 : 0;
  std::vector<DeviceFacts> shares(all.size());
  group.all_gather(&own, sizeof(own), shares.data(), Phase::kCreate);
  for (const DeviceFacts& other : shares) {
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

LayoutParams make_params(GroupImpl& group, const DispatcherConfig& config, const DeviceFacts& facts,
                         Transport transport) {
  LayoutParams params = to_layout_params(config, group.num_ranks(), transport);
  params.page_bytes = facts.granularity;
  params.control_bytes =
      make_control(config, group.num_ranks(), count_blocks_for(group.num_ranks(), facts.sm_share)).num_bytes();
  return params;
}

}  // namespace

PrepareTile choose_tile_for(const DispatcherConfig& config, int num_ranks, int device) {
  // Some is left for what kernels declare themselves.
  constexpr std::int64_t kStaticBytes = 1024;
  int shared_bytes = 0;
  check_cuda(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
             "asking for the shared memory of the device");
  const PrepareTile tile = choose_prepare_tile(
      {.num_ranks = num_ranks, .num_experts = config.num_experts, .top_k = config.top_k}, shared_bytes - kStaticBytes);
  if (tile.num_tokens > 0) return tile;
  throw Error(ErrorCode::kUnsupported,
              fmt::format("{} experts on {} ranks with top-{} need {} bytes of shared memory; GPU {} has {}",
                          config.num_experts, num_ranks, config.top_k, tile.shared_bytes, device, shared_bytes));
}

CudaCollective::CudaCollective(Group& group, const DispatcherConfig& config, const CudaOptions& options, int device,
                               Transport transport)
    : config_(config),
      device_(device),
      group_owner_(group.share()),
      group_(group_owner_.get()),
      options_(options),
      heap_(*group_, device,
            [&] {
              const DeviceFacts facts = gather_facts(*group_, device);
              sm_share_ = facts.sm_share;
              shares_gpu_ = facts.shares_gpu != 0;
              control_ = make_control(config, num_ranks(), count_blocks_for(num_ranks(), facts.sm_share));
              layout_ = DispatchLayout(make_params(*group_, config, facts, transport));
              return layout_.reserved_bytes();
            }()),
      demands_(static_cast<std::size_t>(num_ranks())),
      dispatcher_id_(next_dispatcher_id.fetch_add(1, std::memory_order_relaxed)) {
  std::vector<HeapRange> control_ranges;
  for (int peer = 0; peer < num_ranks(); ++peer) {
    control_ranges.push_back({peer, layout_.section_offset(BufferSection::kControl),
                              layout_.section_bytes(BufferSection::kControl, RowDemand{})});
  }
  heap_.commit(control_ranges);
  grow(std::vector<RowDemand>(static_cast<std::size_t>(num_ranks()), layout_.initial_demand()));
  // Also keeps every rank until all have their memory: taking some may wait for the device.
  agree(*group_, attempt([&] { take_own_memory(); }), "taking a dispatcher's own memory");
}

/// What no other rank sees; may fail on this rank alone.
void CudaCollective::take_own_memory() {
  const DeviceGuard guard(device_);
  host_control_ = PinnedMemory(sizeof(HostControl));
  check_cuda(cudaDeviceGetAttribute(&compute_major_, cudaDevAttrComputeCapabilityMajor, device_),
             "asking for the compute capability");
  prepare_tile_ = choose_tile_for(config_, num_ranks(), device_);
  check_cuda(load_kernels(prepare_tile_.shared_bytes, compute_major_), "loading the kernels");
  for (const bool placing : {false, true}) {
    BufferCarver carver(local_memory_.get());
    carver.take(device_group_.local, 1);
    carver.take(device_group_.outcome, num_ranks() + config_.num_experts);
    if (!placing) local_memory_ = allocate_on(device_, carver.num_bytes());
  }
  device_group_.rank = rank();
  device_group_.num_ranks = num_ranks();
  device_group_.control = control_;
  device_group_.host = reinterpret_cast<HostControl*>(host_control_.get());
  device_group_.early_start = has_bulk_copies() && !shares_gpu_;
  device_group_.timeout_ns = static_cast<std::uint64_t>(group_->timeout().count()) * kNsPerMs;
  for (std::int32_t section = 0; section < kNumBufferSections; ++section) {
    device_group_.section_offset[section] = layout_.section_offset(static_cast<BufferSection>(section));
  }
  for (int peer = 0; peer < num_ranks(); ++peer) device_group_.base[peer] = heap_.base(peer);
  const int num_handles = shares_gpu_ ? kHandlesOnSharedGpu : 1;
  while (static_cast<int>(handles_.size()) < num_handles) {
    handles_.push_back(std::make_shared<CudaHandleState>(device_, layout_, rank()));
  }
  cudaEvent_t event = nullptr;
  check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "creating an event");
  last_work_.reset(event);
}

CudaCollective::~CudaCollective() {
  // Kernels that wait for a rank that will not come end by their own timeout; a broken group need not wait for that.
  try {
    group_->check_usable();
  } catch (const Error&) {
    reinterpret_cast<volatile HostControl*>(host_control_.get())->abort = 1;
  }
  if (last_work_ != nullptr) {
    // On the stream before this one, and on this one.
    warn_cuda(cudaEventSynchronize(last_work_.get()), "waiting for the last work of a dispatcher");
    warn_cuda(cudaStreamSynchronize(stream_), "waiting for the last work of a dispatcher");
  }
  for (const auto& handle : handles_) handle->waiter = nullptr;
}

// ---- Memory ---------------------------------------------------------------------------------------------------------

/// Collective; `demands` by rank, the same on all ranks.
void CudaCollective::grow(const std::vector<RowDemand>& demands) {
  std::vector<HeapRange> ranges;
  std::vector<RowDemand> raised = demands_;
  for (int peer = 0; peer < num_ranks(); ++peer) {
    const auto idx = static_cast<std::size_t>(peer);
    raised[idx].raise_to(demands[idx]);
    for (std::int32_t i = 0; i < kNumBufferSections; ++i) {
      const auto section = static_cast<BufferSection>(i);
      const std::int64_t have = layout_.section_bytes(section, demands_[idx]);
      const std::int64_t need = layout_.section_bytes(section, raised[idx]);
      if (need > have) ranges.push_back({peer, layout_.section_offset(section) + have, need - have});
    }
  }
  if (!ranges.empty()) heap_.commit(ranges);
  demands_ = raised;
}

/// A state that nobody uses any more; null where one has to be made.
std::shared_ptr<CudaHandleState> CudaCollective::find_free_handle() const {
  const auto found = std::find_if(handles_.begin(), handles_.end(),
                                  [](const auto& handle) { return handle.use_count() == 1 && handle->checked; });
  return found != handles_.end() ? *found : nullptr;
}

/// Not collective: a rank that fails here refuses its prepare.
std::shared_ptr<CudaHandleState> CudaCollective::acquire_handle() {
  std::shared_ptr<CudaHandleState> free = find_free_handle();
  // Making one may wait for the device, where a peer's kernel may wait for this rank: there are some in advance, and
  // one that the caller has given back is waited for.
  for (std::size_t idx = 0; free == nullptr && shares_gpu_ && !is_capturing() && idx < handles_.size(); ++idx) {
    const std::shared_ptr<CudaHandleState> used = handles_[idx];
    if (used.use_count() > 2) continue;
    if (!used->finished) wait_for_summary(*used);
    check_summary(*used);
    free = used;
  }
  if (free != nullptr) return free;
  handles_.push_back(std::make_shared<CudaHandleState>(device_, layout_, rank()));
  return handles_.back();
}

// ---- Prepare --------------------------------------------------------------------------------------------------------

Complaint CudaCollective::check_routing(const RoutingView& routing) const {
  if (open_call_ != Call::kNone) {
    return complain(ErrorCode::kInvalidArgument, Phase::kLayout,
                    "a send half is open; call its receive half first, or use a second dispatcher");
  }
  return checks().routing(routing);
}

Handle CudaCollective::prepare(const RoutingView& routing) {
  const DeviceGuard guard(device_);
  Complaint complaint = begin_call();
  if (!complaint) complaint = check_routing(routing);
  std::shared_ptr<CudaHandleState> owned;
  if (!complaint) {
    try {
      owned = acquire_handle();
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kOutOfMemory) throw;
      complaint = complain(error.code(), Phase::kLayout, std::string(error.message()));
    }
  }
  const DeviceCall call = follows_ == Follows::kNothing ? DeviceCall::kPrepare : DeviceCall::kPrepareAndDispatch;
  announce_call(call, nullptr, complaint);
  CudaHandleState& state = *owned;
  ++num_prepared_;
  state.dispatcher_id = dispatcher_id_;
  state.begin(num_prepared_, routing.num_tokens);
  state.output.combine_rows = own_section(BufferSection::kCombineRows);
  state.waiter = [this](CudaHandleState& waiting) {
    const DeviceGuard waiter_guard(device_);
    wait_for_summary(waiting);
    check_summary(waiting);
  };
  launch(state, routing);
  if (config_.sizing == Sizing::kExact) {
    wait_for_summary(state);
    check_summary(state);
    grow(demands_of(state));
  }
  return Handle(std::move(owned));
}

void CudaCollective::launch(CudaHandleState& state, const RoutingView& routing) {
  PrepareArgs args;
  args.group = device_group_;
  args.layout = layout_;
  args.handle = state.arrays;
  args.expert_ids = routing.expert_ids;
  args.weights = routing.weights;
  args.ids_are_64_bit = routing.id_type == IdType::kInt64;
  args.call = follows_ == Follows::kNothing ? DeviceCall::kPrepare : DeviceCall::kPrepareAndDispatch;
  args.prepare_id = state.handle_id;
  args.drop_overflow = config_.overflow == OverflowPolicy::kDrop;
  args.summary = state.summary;
  const int budget = options_.num_sms > 0 ? options_.num_sms : control_.count_blocks;
  args.tile_tokens = prepare_tile_.num_tokens;
  args.announces_dispatch = follows_ == Follows::kDispatchClosely;
  const auto useful = static_cast<int>((state.arrays.num_tokens + kMinTokensPerBlock - 1) / kMinTokensPerBlock);
  const PrepareLaunch launch{.num_blocks = std::clamp(useful, 1, std::min({budget, control_.count_blocks, sm_share_})),
                             .shared_bytes = prepare_tile_.shared_bytes};
  prepare_blocks_ = launch.num_blocks;
  check_cuda(launch_prepare(args, launch, stream_), "launching prepare");
}

std::vector<RowDemand> CudaCollective::demands_of(CudaHandleState& handle) {
  std::vector<RowDemand> demands(static_cast<std::size_t>(num_ranks()));
  for (int peer = 0; peer < num_ranks(); ++peer) {
    demands[static_cast<std::size_t>(peer)].output_rows = handle.output_rows(peer);
    demands[static_cast<std::size_t>(peer)].grad_rows = handle.output_rows(peer);
    demands[static_cast<std::size_t>(peer)].send_pairs = handle.other_pairs(peer);
  }
  return demands;
}

void CudaCollective::finish_handles() {
  for (const auto& handle : handles_) {
    if (!handle->finished) wait_for_summary(*handle);
  }
}

WireBytes CudaCollective::wire_bytes(const Handle& handle) const {
  const RoutingStats& stats = handle.stats();
  const LayoutParams& params = layout_.params();
  const std::int64_t combined = layout_.combines_per_rank() ? stats.sent_remote_rows : stats.sent_remote_assignments;
  return {.dispatch = stats.sent_remote_rows * (params.row_bytes + params.scale_bytes),
          .combine = combined * params.combine_row_bytes};
}

// ---- Settings -------------------------------------------------------------------------------------------------------

void CudaCollective::set_num_sms(int num_sms) {
  if (num_sms < 0) {
    throw complain(ErrorCode::kInvalidArgument, Phase::kNone,
                   fmt::format("an SM budget of {}; it is 0 (as the tuning table says) or more", num_sms));
  }
  options_.num_sms = num_sms;
}

TuningQuery CudaCollective::tuning_query(TunedCall call, std::int64_t num_tokens) const noexcept {
  return {.call = call,
          .layout = config_.layout,
          .num_tokens = num_tokens,
          .row_bytes = call == TunedCall::kCombine ? layout_.params().combine_row_bytes : layout_.params().row_bytes,
          .num_ranks = num_ranks(),
          .num_sms = options_.num_sms,
          .sm_share = sm_share_,
          .compute_major = compute_major_,
          .mover = options_.mover};
}

std::string CudaCollective::describe_tuning(std::int64_t num_tokens) const {
  return describe(tuning_query(TunedCall::kDispatch, num_tokens)) + "\n" +
         describe(tuning_query(TunedCall::kColdDispatch, num_tokens)) + "\n" +
         describe(tuning_query(TunedCall::kCombine, num_tokens)) + "\n";
}

}  // namespace epistle::cuda
