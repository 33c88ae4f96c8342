#include "dispatch/cuda/engine/cuda_engine.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <utility>

#include <fmt/format.h>

#include "dispatch/cuda/engine/cuda_functions.hpp"
#include "dispatch/cuda/engine/cuda_options.hpp"
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

void check_cuda_options(const ResolvedConfig& config, const DeviceOptions& options, const Group& group) {
  const auto& cuda_options = std::get<CudaOptions>(options);
  if (cuda_options.num_sms < 0) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("an SM budget of {}; it is 0 (as the tuning table says) or more", cuda_options.num_sms));
  }
  static_cast<void>(choose_tile_for(config, group.size(), choose_device(cuda_options, group.impl())));
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

std::unique_ptr<DispatcherImpl> create_cuda_engine(const Creation& creation, const PlanRules& rules,
                                                   MakeTransport make_transport) {
  return std::make_unique<CudaEngine>(creation, rules, make_transport);
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
  context_.own_memory = DeviceSource(context_.device, context_.options.allocator);
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
    check_cuda(load_kernels(), "loading the kernels");
    experts_ = std::make_unique<DeviceExperts>(context_);
    last_work_ = Event(EventKind::kOrder);
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
  if (last_work_.exists()) {
    // On the stream before this one, and on this one.
    warn_cuda(cudaEventSynchronize(last_work_.get()), "waiting for the last work of a dispatcher");
    if (transport_ != nullptr) transport_->end();
    warn_cuda(cudaStreamSynchronize(context_.stream), "waiting for the last work of a dispatcher");
  }
  for (const auto& handle : handles_) handle->detach();
}

// ---- Placement ------------------------------------------------------------------------------------------------------

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
                                  .slots_per_rank = context_.config.slots_per_rank,
                                  .early_start = context_.device_group.early_start},
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
    text += transport_->describe_tuning(query) + "\n";
  }
  const std::string links = transport_->describe_links();
  return links.empty() ? text : text + "links: " + links + "\n";
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
