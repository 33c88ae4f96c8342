#include "dispatch/cuda/alltoall/alltoall.hpp"

#include <algorithm>
#include <thread>

#include <fmt/format.h>

#include "core/settings.hpp"
#include "dispatch/cuda/alltoall/alltoall_info.hpp"
#include "dispatch/cuda/engine/cuda_functions.hpp"
#include "gpu/cuda_error.hpp"
#include "gpu/device_uuid.hpp"

namespace epistle::nccl {

using cuda::check_cuda;
using cuda::CudaHandleState;
using cuda::DeviceCall;
using cuda::DeviceGuard;
using cuda::DeviceUuid;
using cuda::HandleTotals;
using cuda::MoveArgs;
using cuda::SumArgs;

namespace {

/// The steps in which ranks tell each other what a handle has of each.
constexpr Call kTellCounts{.kind = CallKind::kPrepare};

/// A GPU as NCCL tells them apart: containers that share one are hosts of their own, and it lets them.
struct GpuOfHost {
  DeviceUuid uuid{};
  std::int32_t host = 0;

  [[nodiscard]] bool operator==(const GpuOfHost& other) const = default;
};

/// NCCL takes one GPU per rank of a host. All ranks see the same, and throw alike.
void check_own_gpus(GroupImpl& group, int device) {
  GpuOfHost own{.uuid = {}, .host = group.host_of(group.rank())};
  const auto error = attempt([&] { own.uuid = cuda::uuid_of(device); });
  const std::vector<GpuOfHost> all = group.gather(kGpuSetUp, Phase::kCreate, own, error);
  for (auto gpu = all.begin(); gpu != all.end(); ++gpu) {
    if (std::count(gpu, all.end(), *gpu) < 2) continue;
    std::string ranks;
    for (std::size_t rank = 0; rank < all.size(); ++rank) {
      if (all[rank] == *gpu) ranks += fmt::format("{}{}", ranks.empty() ? "" : ", ", rank);
    }
    throw Error(ErrorCode::kUnsupported,
                fmt::format("ranks {} have the same GPU, and the dispatcher alltoall needs one for every rank, because "
                            "NCCL does; use fewer ranks, or the dispatcher direct",
                            ranks),
                {.rank = group.rank(), .phase = Phase::kCreate});
  }
}

/// Throws on every rank where any rank cannot load NCCL.
const NcclApi& load_on_all_ranks(GroupImpl& group) {
  const NcclApi* api = nullptr;
  const Complaint complaint = attempt([&] { api = &load_nccl(settings().nccl_library()); });
  (void)group.agree(kGpuSetUp, Phase::kCreate, complaint);
  return *api;
}

}  // namespace

AllToAllTransport::AllToAllTransport(cuda::EngineContext& context) : context_(context) {
  check_own_gpus(*context.group, context.device);
  const NcclApi& api = load_on_all_ranks(*context.group);
  const DeviceGuard guard(context.device);
  (void)context.group->agree(kGpuSetUp, Phase::kCreate, attempt([&] { take_exchange_memory(); }));
  communicator_ = std::make_unique<Communicator>(api, *context.group);
}

void AllToAllTransport::take_exchange_memory() {
  check_cuda(load_exchange_kernels(), "loading the kernels");
  totals_ = cuda::PinnedMemory(sizeof(HandleTotals));
  entry_counts_ = cuda::PinnedMemory(sizeof(EntryCounts));
  if (!returns_entries()) return;
  entry_memory_ = context_.own_memory.carve(
      [this](cuda::BufferCarver& carver) { carve_entries(carver, context_.layout(), entry_tables_); });
}

void AllToAllTransport::end() noexcept {
  bool done = true;
  try {
    GroupImpl& group = *context_.group;
    group.check_usable();
    const auto give_up = std::chrono::steady_clock::now() + group.timeout();
    // A lost rank may owe rows that NCCL would wait for without end.
    const cudaEvent_t work = context_.last_work();
    while (cudaEventQuery(work) == cudaErrorNotReady) {
      if (std::chrono::steady_clock::now() > give_up) done = false;
      if (group.find_lost_rank() >= 0 && cudaEventQuery(work) == cudaErrorNotReady) done = false;
      if (!done) break;
      std::this_thread::yield();
    }
  } catch (const Error&) {
    done = false;
  }
  if (done) {
    communicator_->end();
  } else {
    communicator_->abort();
  }
}

WireBytes AllToAllTransport::wire_bytes(const CudaHandleState& handle) const {
  const LayoutParams& params = context_.layout().params();
  const std::int64_t pairs =
      context_.layout().token_major() ? handle.stats.sent_remote_rows : handle.other_pairs(context_.rank());
  return {.dispatch = pairs * (params.row_bytes + params.scale_bytes),
          .combine = (returns_entries() ? handle.stats.sent_remote_assignments : pairs) * params.combine_row_bytes};
}

Complaint AllToAllTransport::find_broken() const {
  if (communicator_->is_usable()) return std::nullopt;
  return Error(ErrorCode::kSystem, "NCCL was given up after an earlier failure; create the dispatcher again",
               {.rank = context_.rank()});
}

Phase AllToAllTransport::abandon() noexcept {
  if (communicator_ == nullptr || !communicator_->is_usable()) return Phase::kNone;
  communicator_->abort();
  return phase_;
}

// ---- What the host knows --------------------------------------------------------------------------------------------

/// Collective where rows were dropped.
AllToAllTransport::Known& AllToAllTransport::known(const CudaHandleState& handle) {
  Known& facts = known_[&handle];
  if (facts.prepare_id == handle.prepare_id) return facts;
  Known fresh{.prepare_id = handle.prepare_id, .pairs = {}, .sent = {}, .returned = {}};
  if (handle.stats.dropped_in_group == 0) {
    fresh.pairs = PairTable(context_.num_ranks(), handle.pairs);
  } else {
    // The summary counts pairs that fit; where the others leave gaps, only the device knows.
    const Complaint complaint = attempt([&] {
      check_cuda(cudaMemcpyAsync(totals_.get(), handle.arrays.totals, sizeof(HandleTotals), cudaMemcpyDeviceToHost,
                                 context_.stream),
                 "reading the counts of a handle");
      context_.wait();
    });
    const auto& own = *reinterpret_cast<const HandleTotals*>(totals_.get());
    fresh.pairs = PairTable(context_.group->gather(kTellCounts, Phase::kLayout, own, complaint));
  }
  facts = std::move(fresh);
  return facts;
}

void AllToAllTransport::raise_demands(CudaHandleState& handle, std::vector<RowDemand>& demands) {
  const PairTable& pairs = known(handle).pairs;
  for (int peer = 0; peer < context_.num_ranks(); ++peer) {
    demands[static_cast<std::size_t>(peer)].receive_rows = pairs.num_received(peer);
  }
  if (!returns_entries()) return;
  struct Entries {
    std::int64_t received;
    std::int64_t sent;
  };
  const Entries own{handle.stats.output_rows, handle.stats.sent_remote_assignments};
  const std::vector<Entries> all = context_.group->gather(kTellCounts, Phase::kLayout, own);
  for (std::size_t peer = 0; peer < demands.size(); ++peer) {
    demands[peer].receive_rows = std::max(demands[peer].receive_rows, all[peer].received);
    demands[peer].send_rows = all[peer].sent;
  }
}

/// Fills the tables of entries for this handle, and asks for the counts once.
void AllToAllTransport::find_entries(const CudaHandleState& handle, Known& facts) {
  if (entries_of_ == handle.prepare_id && !facts.sent.empty()) return;
  EntryArgs args;
  args.group = context_.device_group;
  args.layout = context_.layout();
  args.handle = handle.arrays;
  args.tables = entry_tables_;
  args.counts = reinterpret_cast<EntryCounts*>(entry_counts_.get());
  args.num_packed = facts.pairs.packed_end(context_.rank());
  args.num_blocks = cuda::choose(context_.tuning_query(cuda::TunedCall::kCombine, handle.num_tokens)).num_blocks;
  for (int peer = 0; peer < context_.num_ranks(); ++peer) {
    const auto rows = static_cast<std::int32_t>(facts.pairs.packed(context_.rank(), peer).num_rows);
    args.packed_block[peer + 1] = args.packed_block[peer] + rows;
  }
  check_cuda(launch_find_entries(args, context_.stream), "launching the search for entries");
  entries_of_ = handle.prepare_id;
  if (!facts.sent.empty()) return;
  context_.wait();
  Block sent;
  Block returned;
  for (int peer = 0; peer < context_.num_ranks(); ++peer) {
    sent.num_rows = args.counts->sent[peer];
    returned.num_rows = args.counts->returned[peer];
    facts.sent.push_back(sent);
    facts.returned.push_back(returned);
    sent.begin += sent.num_rows;
    returned.begin += returned.num_rows;
  }
}

// ---- Exchanges ------------------------------------------------------------------------------------------------------

void AllToAllTransport::queue(std::vector<Transfer>& transfers, int peer, const Rows& rows, const Block& sent,
                              const Block& received) const {
  transfers.push_back({.peer = peer,
                       .send = rows.send + sent.begin * rows.row_bytes,
                       .send_bytes = static_cast<std::size_t>(sent.num_rows * rows.row_bytes),
                       .receive = rows.receive + received.begin * rows.row_bytes,
                       .receive_bytes = static_cast<std::size_t>(received.num_rows * rows.row_bytes)});
}

void AllToAllTransport::exchange(const std::vector<Transfer>& transfers, Phase phase) {
  phase_ = phase;
  const bool empty = std::all_of(transfers.begin(), transfers.end(), [](const Transfer& transfer) {
    return transfer.send_bytes == 0 && transfer.receive_bytes == 0;
  });
  if (!empty) communicator_->exchange(transfers, context_.stream, phase);
}

void AllToAllTransport::exchange_tokens(const MoveArgs& args, const PairTable& pairs) {
  const bool token_major = context_.layout().token_major();
  const Rows rows{.send = context_.own_section(BufferSection::kSendRows),
                  .receive = context_.own_section(token_major ? args.target : BufferSection::kStageRows),
                  .row_bytes = args.row_bytes};
  const Rows scales{
      .send = context_.own_section(BufferSection::kSendScales),
      .receive = context_.own_section(token_major ? BufferSection::kReceiveScales : BufferSection::kStageScales),
      .row_bytes = args.scale_bytes};
  std::vector<Transfer> transfers;
  for (int peer = 0; peer < context_.num_ranks(); ++peer) {
    if (peer == context_.rank()) continue;
    const Block sent = pairs.packed(context_.rank(), peer);
    const Block received = pairs.received(peer, context_.rank());
    queue(transfers, peer, rows, sent, received);
    if (args.scale_bytes > 0) queue(transfers, peer, scales, sent, received);
  }
  exchange(transfers, args.target == BufferSection::kCombineRows ? Phase::kCombine : Phase::kDispatch);
}

void AllToAllTransport::start_move(const CudaHandleState& handle, MoveArgs& args) {
  args.tuning.num_blocks =
      cuda::choose(context_.tuning_query(cuda::TunedCall::kDispatch, handle.num_tokens)).num_blocks;
  if ((args.phases & cuda::kSendPhase) != 0) {
    const PairTable& pairs = known(handle).pairs;
    check_cuda(launch_pack_tokens(args, context_.stream), "launching the permutation of tokens");
    exchange_tokens(args, pairs);
  }
  if ((args.phases & cuda::kReceivePhase) != 0 && (args.zero_padding || !context_.layout().token_major())) {
    check_cuda(launch_expand_pairs(args, context_.stream), "launching the placing of rows");
  }
}

void AllToAllTransport::send_sums(const CudaHandleState& handle, const SumArgs& args) {
  Known& facts = known(handle);
  Rows rows{.send = context_.own_section(BufferSection::kSendRows),
            .receive = context_.own_section(BufferSection::kStageRows),
            .row_bytes = context_.layout().params().combine_row_bytes};
  if (context_.layout().token_major()) {
    rows.send = args.rows;  // already in the order of the sources
  } else if (returns_entries()) {
    find_entries(handle, facts);
    check_cuda(launch_pack_entries(args, entry_tables_, context_.stream),
               "launching the permutation of expert outputs");
  } else {
    check_cuda(launch_sum_pairs(args, context_.stream), "launching the partial sums");
  }
  std::vector<Transfer> transfers;
  for (int peer = 0; peer < context_.num_ranks(); ++peer) {
    if (peer == context_.rank()) continue;
    const auto idx = static_cast<std::size_t>(peer);
    const Block sent = returns_entries() ? facts.sent[idx] : facts.pairs.received(peer, context_.rank());
    const Block returned = returns_entries() ? facts.returned[idx] : facts.pairs.packed(context_.rank(), peer);
    queue(transfers, peer, rows, sent, returned);
  }
  exchange(transfers, Phase::kCombine);
}

void AllToAllTransport::start_sum(const CudaHandleState& handle, SumArgs& args) {
  args.tuning.num_blocks = cuda::choose(context_.tuning_query(cuda::TunedCall::kCombine, handle.num_tokens)).num_blocks;
  if ((args.phases & cuda::kSendPhase) != 0) send_sums(handle, args);
  if ((args.phases & cuda::kReceivePhase) == 0) return;
  check_cuda(returns_entries() ? launch_sum_entries(args, entry_tables_, context_.stream)
                               : launch_sum_tokens(args, context_.stream),
             "launching the sums");
}

bool AllToAllTransport::bring_weight_gradients(const CudaHandleState& handle,
                                               const cuda::WeightGradientArgs& /*args*/) {
  std::vector<Transfer> transfers;
  for (int peer = 0; peer < context_.num_ranks(); ++peer) {
    if (context_.heap->reaches(peer)) continue;
    const Rows gradients{
        .send = context_.own_section(BufferSection::kGradWeights, 0),
        .receive = context_.heap->base(peer) + context_.plan.section_offset(BufferSection::kGradWeights),
        .row_bytes = context_.layout().weights_per_row() * static_cast<std::int64_t>(sizeof(float))};
    queue(transfers, peer, gradients, {0, handle.output_rows(context_.rank())}, {0, handle.output_rows(peer)});
  }
  exchange(transfers, Phase::kCombine);
  return false;
}

}  // namespace epistle::nccl

namespace epistle::cuda {

std::unique_ptr<DispatcherImpl> create_alltoall(const Creation& creation) {
  return create_cuda_engine(creation, alltoall_rules(), make_transport<nccl::AllToAllTransport>);
}

}  // namespace epistle::cuda
