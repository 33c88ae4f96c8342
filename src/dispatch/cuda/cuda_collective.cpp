#include "dispatch/cuda/cuda_collective.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "dispatch/config_check.hpp"
#include "group/cuda/cuda_error.hpp"

namespace epistle::cuda {
namespace {

using Clock = std::chrono::steady_clock;

std::atomic<std::uint64_t> next_dispatcher_id{1};

// Blocks that count in prepare: enough that each has few tokens, few enough that all can read all counts quickly.
constexpr int kMaxCountBlocks = 16;
constexpr int kMaxCountPlaces = 128;
constexpr std::int64_t kMinTokensPerBlock = 64;
// How often a waiting host looks at the clock, and at its peers.
constexpr int kPollsPerLook = 256;
constexpr std::chrono::milliseconds kPeerLookInterval{5};
// The device gives up by itself; the host waits a little longer before it believes that it does not.
constexpr std::chrono::milliseconds kDeviceGrace{2000};
constexpr std::uint64_t kNsPerMs = 1'000'000;

int count_blocks_for(int num_ranks, int sm_share) {
  return std::clamp(std::min(kMaxCountPlaces / num_ranks, sm_share), 1, kMaxCountBlocks);
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
};

DeviceFacts gather_facts(GroupImpl& group, int device) {
  check_cuda(cudaSetDevice(device), "choosing the device of this rank");
  check_cuda(cudaFree(nullptr), "starting CUDA on the device of this rank");
  DeviceFacts own;
  own.device = device;
  own.granularity = SymmetricHeap::granularity(device);
  int num_sms = 0;
  check_cuda(cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device), "asking for the number of SMs");
  std::vector<DeviceFacts> all(static_cast<std::size_t>(group.num_ranks()));
  group.all_gather(&own, sizeof(own), all.data(), Phase::kCreate);
  // Ranks of one process that share a GPU share its SMs, so that their kernels are resident together.
  const auto ranks_here = std::count_if(all.begin(), all.end(), [&](const DeviceFacts& other) {
    return group.kind() == GroupKind::kThreads && other.device == device;
  });
  own.sm_share = num_sms / static_cast<int>(std::max<std::ptrdiff_t>(1, ranks_here));
  group.all_gather(&own, sizeof(own), all.data(), Phase::kCreate);
  for (const DeviceFacts& other : all) {
    own.granularity = std::max(own.granularity, other.granularity);
    own.sm_share = std::min(own.sm_share, other.sm_share);
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
              control_ = make_control(config, num_ranks(), count_blocks_for(num_ranks(), facts.sm_share));
              layout_ = DispatchLayout(make_params(*group_, config, facts, transport));
              return layout_.reserved_bytes();
            }()),
      allocator_(std::make_shared<DeviceAllocator>(device)),
      host_control_(sizeof(HostControl)),
      demands_(static_cast<std::size_t>(num_ranks())),
      dispatcher_id_(next_dispatcher_id.fetch_add(1, std::memory_order_relaxed)) {
  check_cuda(cudaDeviceGetAttribute(&compute_major_, cudaDevAttrComputeCapabilityMajor, device),
             "asking for the compute capability");
  prepare_tile_ = choose_tile_for(config, num_ranks(), device);
  check_cuda(load_kernels(prepare_tile_.shared_bytes, compute_major_), "loading the kernels");
  check_cuda(cudaEventCreateWithFlags(&last_work_, cudaEventDisableTiming), "creating an event");
  for (const bool placing : {false, true}) {
    BufferCarver carver(placing ? local_memory_ : nullptr);
    carver.take(device_group_.local, 1);
    carver.take(device_group_.outcome, num_ranks() + config.num_experts);
    if (!placing) local_memory_ = allocator_->allocate(carver.num_bytes());
  }
  device_group_.rank = rank();
  device_group_.num_ranks = num_ranks();
  device_group_.control = control_;
  device_group_.host = reinterpret_cast<HostControl*>(host_control_.get());
  device_group_.timeout_ns = static_cast<std::uint64_t>(group_->timeout().count()) * kNsPerMs;
  for (std::int32_t section = 0; section < kNumBufferSections; ++section) {
    device_group_.section_offset[section] = layout_.section_offset(static_cast<BufferSection>(section));
  }
  for (int peer = 0; peer < num_ranks(); ++peer) device_group_.base[peer] = heap_.base(peer);
  std::vector<HeapRange> control_ranges;
  for (int peer = 0; peer < num_ranks(); ++peer) {
    control_ranges.push_back({peer, layout_.section_offset(BufferSection::kControl),
                              layout_.section_bytes(BufferSection::kControl, RowDemand{})});
  }
  heap_.commit(control_ranges);
  grow(std::vector<RowDemand>(static_cast<std::size_t>(num_ranks()), layout_.initial_demand()));
  handles_.push_back(std::make_shared<CudaHandleState>(allocator_, layout_, rank()));
  group_->barrier(Phase::kCreate);
}

CudaCollective::~CudaCollective() {
  // Kernels that wait for a rank that will not come end by their own timeout; a broken group need not wait for that.
  try {
    group_->check_usable();
  } catch (const Error&) {
    reinterpret_cast<volatile HostControl*>(host_control_.get())->abort = 1;
  }
  if (last_work_ != nullptr) {
    warn_cuda(cudaEventSynchronize(last_work_), "waiting for the last work of a dispatcher");
    allocator_->release(local_memory_, last_work_);
    warn_cuda(cudaEventDestroy(last_work_), "destroying an event");
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

std::shared_ptr<CudaHandleState> CudaCollective::acquire_handle() {
  for (const auto& handle : handles_) {
    if (handle.use_count() == 1 && handle->checked) return handle;
  }
  handles_.push_back(std::make_shared<CudaHandleState>(allocator_, layout_, rank()));
  return handles_.back();
}

// ---- Prepare --------------------------------------------------------------------------------------------------------

CudaCollective::Complaint CudaCollective::check_routing(const RoutingView& routing) const {
  const auto reject = [this](const std::string& message) {
    return complain(ErrorCode::kInvalidArgument, Phase::kLayout, message);
  };
  if (open_call_ != Call::kNone) {
    return reject("a send half is open; call its receive half first, or use a second dispatcher");
  }
  if (routing.num_tokens < 0 || routing.num_tokens > config_.max_tokens) {
    return reject(fmt::format("{} tokens; this dispatcher was created for 0 to {} (max_tokens)", routing.num_tokens,
                              config_.max_tokens));
  }
  if (routing.top_k != config_.top_k) {
    return reject(fmt::format("the routing has top_k {}, the dispatcher {}", routing.top_k, config_.top_k));
  }
  if (routing.expert_ids == nullptr && routing.num_tokens > 0) return reject("routing.expert_ids is null");
  return std::nullopt;
}

Handle CudaCollective::prepare(const RoutingView& routing) {
  const DeviceGuard guard(device_);
  Complaint complaint = begin_call();
  if (!complaint) complaint = check_routing(routing);
  announce_call(Collective::kPrepare, nullptr, complaint);
  std::shared_ptr<CudaHandleState> owned = acquire_handle();
  CudaHandleState& state = *owned;
  ++num_prepared_;
  state.dispatcher_id = dispatcher_id_;
  state.begin(num_prepared_, complaint ? 0 : routing.num_tokens);
  state.output.combine_rows = own_section(BufferSection::kCombineRows);
  state.waiter = [this](CudaHandleState& waiting) {
    const DeviceGuard waiter_guard(device_);
    wait_for_summary(waiting);
    check_summary(waiting, nullptr);
  };
  launch(state, routing, complaint.has_value());
  if (complaint) {
    // The others learn it from the device; this rank's own summary has nothing to add.
    state.checked = true;
    throw Error(*complaint);
  }
  if (config_.sizing == Sizing::kExact) {
    wait_for_summary(state);
    check_summary(state, &routing);
    grow(demands_of(state));
  }
  return Handle(std::move(owned));
}

void CudaCollective::launch(CudaHandleState& state, const RoutingView& routing, bool refuse) {
  PrepareArgs args;
  args.group = device_group_;
  args.layout = layout_;
  args.handle = state.arrays;
  args.expert_ids = routing.expert_ids;
  args.weights = routing.weights;
  args.ids_are_64_bit = routing.id_type == IdType::kInt64;
  args.refuse = refuse;
  args.prepare_id = state.handle_id;
  args.drop_overflow = config_.overflow == OverflowPolicy::kDrop;
  args.summary = state.summary;
  const int budget = options_.num_sms > 0 ? options_.num_sms : control_.count_blocks;
  args.tile_tokens = prepare_tile_.num_tokens;
  const auto useful = static_cast<int>((state.arrays.num_tokens + kMinTokensPerBlock - 1) / kMinTokensPerBlock);
  const PrepareLaunch launch{.num_blocks = std::clamp(useful, 1, std::min({budget, control_.count_blocks, sm_share_})),
                             .shared_bytes = prepare_tile_.shared_bytes};
  check_cuda(launch_prepare(args, launch, stream_), "launching prepare");
  // Nothing may stand between prepare and a dispatch that follows it closely.
  if (!dispatch_follows_) mark_use(state);
}

void CudaCollective::wait_for_summary(CudaHandleState& state) {
  if (state.finished) {
    // Once more, after a graph has run prepare again.
    state.finish();
    state.checked = false;
    return;
  }
  if (is_capturing()) {
    throw complain(ErrorCode::kInvalidArgument, Phase::kLayout,
                   "the stream is being captured, so the host cannot wait for counts; use capacity sizing and read the "
                   "counts after the graph has run");
  }
  wait_on_host(&state, [&] { return state.is_complete(); });
  state.finish();
}

void CudaCollective::check_summary(CudaHandleState& state, const RoutingView* routing) {
  if (state.checked) return;
  state.checked = true;
  const Summary& summary = *state.summary;
  const auto finding = static_cast<Finding>(summary.finding);
  if (finding == Finding::kNone) return;
  const Error::Context context{.rank = rank(), .peer_rank = summary.peer, .phase = Phase::kLayout};
  const std::int64_t token = summary.a / std::max(1, config_.top_k);
  const std::int64_t position = summary.a % std::max(1, config_.top_k);
  static_cast<void>(routing);
  switch (finding) {
    case Finding::kBadId:
      throw complain(ErrorCode::kInvalidArgument, Phase::kLayout,
                     fmt::format("expert id {} at token {}, position {}; ids go from 0 to {}, and -1 means no expert",
                                 summary.b, token, position, config_.num_experts - 1));
    case Finding::kRepeatedId:
      throw complain(ErrorCode::kInvalidArgument, Phase::kLayout,
                     fmt::format("expert id {} stands twice in the top-k of token {} (seen at position {}); an expert "
                                 "may be chosen once per token",
                                 summary.b, token, position));
    case Finding::kPeerRejected:
      throw Error(ErrorCode::kPeerRejected,
                  fmt::format("rank {} rejected its input, so nothing was sent", summary.peer), context);
    default:
      throw Error(ErrorCode::kCapacityExceeded,
                  fmt::format("rank {} would receive {} rows more than its {} {}; nothing was sent. Raise "
                              "capacity_rows, use exact sizing, or set the overflow policy to drop",
                              summary.peer, summary.a, layout_.row_limit(),
                              config_.layout == OutputLayout::kExpertSlots ? "expert slots" : "rows of capacity"),
                  context);
  }
}

std::vector<RowDemand> CudaCollective::demands_of(CudaHandleState& state) {
  std::vector<RowDemand> demands(static_cast<std::size_t>(num_ranks()));
  for (int peer = 0; peer < num_ranks(); ++peer) {
    demands[static_cast<std::size_t>(peer)].output_rows = state.output_rows(peer);
    demands[static_cast<std::size_t>(peer)].send_pairs = state.other_pairs(peer);
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

// ---- Waiting, and what the device finds -----------------------------------------------------------------------------

bool CudaCollective::is_capturing() const {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(stream_, &status), "asking whether the stream is being captured");
  return status != cudaStreamCaptureStatusNone;
}

void CudaCollective::mark_use(CudaHandleState& state) {
  if (is_capturing()) return;
  check_cuda(cudaEventRecord(state.last_use, stream_), "recording an event");
  check_cuda(cudaEventRecord(last_work_, stream_), "recording an event");
}

template <typename IsDone>
void CudaCollective::wait_on_host(const CudaHandleState* state, const IsDone& is_done) {
  const auto* control = reinterpret_cast<const volatile HostControl*>(host_control_.get());
  const Clock::time_point start = Clock::now();
  Clock::time_point last_look = start;
  while (true) {
    for (int poll = 0; poll < kPollsPerLook; ++poll) {
      if (is_done()) return;
      spin_pause();
    }
    if (control->report.finding != 0) throw_finding(const_cast<const HostControl*>(control)->report, state);
    const Clock::time_point now = Clock::now();
    if (now - last_look < kPeerLookInterval) continue;
    last_look = now;
    if (const cudaError_t error = cudaPeekAtLastError(); error != cudaSuccess)
      check_cuda(error, "waiting for the device");
    if (const cudaError_t error = cudaEventQuery(last_work_); error != cudaSuccess && error != cudaErrorNotReady) {
      check_cuda(error, "waiting for the device");
    }
    const int lost = group_->find_lost_rank();
    if (lost >= 0 && !is_done()) stop_for_lost_rank(lost, state);
    if (now - start > group_->timeout() + kDeviceGrace) {
      static_cast<void>(abandon_transport());
      throw complain(ErrorCode::kTimeout, Phase::kLayout,
                     fmt::format("the device did not finish within {} ms; another kernel may hold the SMs of GPU {}",
                                 (group_->timeout() + kDeviceGrace).count(), device_));
    }
  }
}

void CudaCollective::stop_for_lost_rank(int lost, const CudaHandleState* state) {
  // A rank that has left may have done all it had to: the device says whether it owes anything.
  const Clock::time_point start = Clock::now();
  auto* control = reinterpret_cast<volatile HostControl*>(host_control_.get());
  while (Clock::now() - start < std::chrono::milliseconds(50)) {
    if (cudaEventQuery(last_work_) == cudaSuccess && control->report.finding == 0) return;
  }
  control->abort = 1;
  const Phase abandoned = abandon_transport();
  check_cuda(cudaEventSynchronize(last_work_), "stopping the device after a rank was lost");
  control->abort = 0;
  const MissingRows missing = [state, this](int peer) {
    return state != nullptr && state->finished && !state->pairs.empty() ? std::int64_t{state->num_pairs(peer, rank())}
                                                                        : std::int64_t{-1};
  };
  const auto phase = control->report.finding != 0 ? static_cast<Phase>(control->report.phase) : abandoned;
  if (phase == Phase::kNone) return;
  group_->fail(ErrorCode::kPeerLost, phase, lost, &missing);
}

void CudaCollective::throw_finding(const Report& report, const CudaHandleState* state) {
  const auto phase = static_cast<Phase>(report.phase);
  const int peer = report.peer;
  const MissingRows missing = [state, phase, this](int other) -> std::int64_t {
    if (state == nullptr || !state->finished || state->pairs.empty()) return -1;
    return phase == Phase::kCombine ? state->num_pairs(rank(), other) : state->num_pairs(other, rank());
  };
  switch (static_cast<Finding>(report.finding)) {
    case Finding::kCallMismatch: {
      constexpr std::array<std::string_view, 6> kNames = {"nothing", "prepare",           "dispatch",
                                                          "combine", "dispatch_backward", "a call that it rejected"};
      const auto name = [&](std::int64_t word) {
        return kNames[std::min<std::size_t>(static_cast<std::size_t>(word >> 24) & 0xffU, kNames.size() - 1)];
      };
      throw Error(
          ErrorCode::kShapeMismatch,
          fmt::format("rank {} calls {} (handle {}), rank {} calls {} (handle {}); all ranks must make the same "
                      "calls in the same order; nothing was sent",
                      rank(), name(report.a), report.a & 0xffffff, peer, name(report.b), report.b & 0xffffff),
          {.rank = rank(), .peer_rank = peer, .phase = phase});
    }
    case Finding::kTimeout: {
      const int lost = group_->find_lost_rank();
      group_->fail(lost == peer ? ErrorCode::kPeerLost : ErrorCode::kTimeout, phase, peer, &missing);
    }
    default: {
      const int lost = group_->find_lost_rank();
      group_->check_usable();
      group_->fail(lost >= 0 ? ErrorCode::kPeerLost : ErrorCode::kTimeout, phase, lost >= 0 ? lost : peer, &missing);
    }
  }
}

/// Throws what earlier calls have found; does not wait.
void CudaCollective::check_findings() {
  group_->check_usable();
  auto* control = reinterpret_cast<volatile HostControl*>(host_control_.get());
  if (control->report.finding != 0) {
    throw_finding(reinterpret_cast<HostControl*>(host_control_.get())->report, open_state_);
  }
  if (control->rejected.finding != 0) {
    const int peer = control->rejected.peer;
    const auto phase = static_cast<Phase>(control->rejected.phase);
    control->rejected.finding = 0;
    throw Error(ErrorCode::kPeerRejected, fmt::format("rank {} rejected its input, so nothing was sent", peer),
                {.rank = rank(), .peer_rank = peer, .phase = phase});
  }
  for (const auto& handle : handles_) {
    if (handle->checked || !handle->is_complete()) continue;
    if (!handle->finished) handle->finish();
    check_summary(*handle, nullptr);
  }
}

void CudaCollective::synchronize() {
  const DeviceGuard guard(device_);
  if (is_capturing()) {
    throw complain(ErrorCode::kInvalidArgument, Phase::kNone, "the stream is being captured and cannot be waited for");
  }
  check_cuda(cudaEventRecord(last_work_, stream_), "recording an event");
  wait_on_host(open_state_, [&] { return cudaEventQuery(last_work_) == cudaSuccess; });
  check_findings();
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
