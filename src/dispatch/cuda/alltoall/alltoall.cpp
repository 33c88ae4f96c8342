#include "dispatch/cuda/alltoall/alltoall.hpp"

#include <algorithm>
#include <cstring>
#include <optional>
#include <thread>

#include <fmt/format.h>

#include "core/settings.hpp"
#include "gpu/cuda_error.hpp"
#include "gpu/heap/heap_agreement.hpp"
#include "gpu/heap/heap_kind.hpp"

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

/// NCCL takes one GPU per rank. All ranks see the same, and throw alike.
void check_own_gpus(GroupImpl& group, int device) {
  DeviceUuid own{};
  const auto error = attempt([&] {
    cudaDeviceProp properties{};
    check_cuda(cudaGetDeviceProperties(&properties, device), "asking for the identity of the device");
    std::memcpy(own.data(), properties.uuid.bytes, own.size());
  });
  const std::vector<DeviceUuid> all = cuda::agree(group, error, "finding its GPU", own);
  for (auto uuid = all.begin(); uuid != all.end(); ++uuid) {
    if (std::count(uuid, all.end(), *uuid) < 2) continue;
    std::string ranks;
    for (std::size_t rank = 0; rank < all.size(); ++rank) {
      if (all[rank] == *uuid) ranks += fmt::format("{}{}", ranks.empty() ? "" : ", ", rank);
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
  std::optional<Error> error;
  try {
    api = &load_nccl(settings().nccl_library());
  } catch (const Error& e) {
    error = e;
  }
  const std::int32_t own = error ? 1 : 0;
  std::vector<std::int32_t> all(static_cast<std::size_t>(group.num_ranks()));
  group.all_gather(&own, sizeof(own), all.data(), Phase::kCreate);
  if (error) {
    throw Error(error->code(), error->what(), {.rank = group.rank(), .phase = Phase::kCreate});
  }
  const auto failed = std::find(all.begin(), all.end(), 1);
  if (failed == all.end()) return *api;
  const auto peer = static_cast<int>(failed - all.begin());
  throw Error(ErrorCode::kPeerRejected, fmt::format("rank {} cannot load NCCL", peer),
              {.rank = group.rank(), .peer_rank = peer, .phase = Phase::kCreate});
}

}  // namespace

std::unique_ptr<CudaDispatcher> AllToAllDispatcher::create(Group& group, const DispatcherConfig& config,
                                                           const CudaOptions& options, int device) {
  check_own_gpus(group.impl(), device);
  const NcclApi& api = load_on_all_ranks(group.impl());
  return std::make_unique<AllToAllDispatcher>(group, config, options, device, api);
}

AllToAllDispatcher::AllToAllDispatcher(Group& group, const DispatcherConfig& config, const CudaOptions& options,
                                       int device, const NcclApi& api)
    : CudaCollective(group, config, options, device, Transport::kDeviceAllToAll) {
  const DeviceGuard guard(device);
  cuda::agree(this->group(), attempt([&] { take_exchange_memory(); }), "taking memory for exchanges");
  communicator_ = std::make_unique<Communicator>(api, this->group());
}

void AllToAllDispatcher::take_exchange_memory() {
  check_cuda(load_exchange_kernels(), "loading the kernels");
  totals_ = cuda::PinnedMemory(sizeof(HandleTotals));
  entry_counts_ = cuda::PinnedMemory(sizeof(EntryCounts));
  if (!returns_entries()) return;
  const LayoutParams& params = layout().params();
  for (const bool placing : {false, true}) {
    cuda::BufferCarver carver(entry_memory_.get());
    carver.take(entry_tables_.packed_begin, params.max_tokens * layout().max_other_ranks_per_token() + 1);
    carver.take(entry_tables_.received_begin, params.max_tokens * params.num_ranks + 1);
    carver.take(entry_tables_.stage, params.max_tokens * params.top_k);
    if (!placing) entry_memory_ = cuda::allocate_on(device(), carver.num_bytes());
  }
}

AllToAllDispatcher::~AllToAllDispatcher() {
  const DeviceGuard guard(device());
  bool done = true;
  try {
    group().check_usable();
    const auto give_up = std::chrono::steady_clock::now() + group().timeout();
    // A lost rank may owe rows that NCCL would wait for without end.
    const cudaEvent_t work = last_work();
    while (cudaEventQuery(work) == cudaErrorNotReady) {
      if (std::chrono::steady_clock::now() > give_up) done = false;
      if (group().find_lost_rank() >= 0 && cudaEventQuery(work) == cudaErrorNotReady) done = false;
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

WireBytes AllToAllDispatcher::wire_bytes(const Handle& handle) const {
  const RoutingStats& stats = handle.stats();
  const LayoutParams& params = layout().params();
  std::int64_t pairs = stats.sent_remote_rows;
  const auto* state = dynamic_cast<const CudaHandleState*>(handle.state());
  if (state != nullptr && !layout().token_major()) pairs = state->other_pairs(rank());
  return {.dispatch = pairs * (params.row_bytes + params.scale_bytes),
          .combine = (returns_entries() ? stats.sent_remote_assignments : pairs) * params.combine_row_bytes};
}

// ---- What ranks agree on --------------------------------------------------------------------------------------------

Complaint AllToAllDispatcher::begin_call() {
  if (is_capturing()) {
    return complain(ErrorCode::kUnsupported, Phase::kNone,
                    "the stream is being captured, but the dispatcher alltoall needs the host in every call; use the "
                    "dispatcher direct with capacity sizing");
  }
  try {
    finish_handles();
    check_findings();
  } catch (const Error& error) {
    // What ends the group, all ranks throw; the rest is told to them.
    group().check_usable();
    return error;
  }
  if (communicator_->is_usable()) return std::nullopt;
  return complain(ErrorCode::kSystem, Phase::kNone,
                  "NCCL was given up after an earlier failure; create the dispatcher again");
}

DeviceCall AllToAllDispatcher::announce_call(DeviceCall call, const CudaHandleState* handle,
                                             const Complaint& complaint) {
  const auto handle_id = handle != nullptr ? static_cast<std::uint32_t>(handle->handle_id) : 0;
  const std::uint64_t own = cuda::call_word(0, complaint ? DeviceCall::kRejected : call, handle_id);
  std::vector<std::uint64_t> words(static_cast<std::size_t>(num_ranks()));
  const Phase phase = cuda::phase_of(call);
  group().all_gather(&own, sizeof(own), words.data(), phase);
  if (complaint) throw Error(*complaint);
  const cuda::Verdict verdict = cuda::judge(words.data(), num_ranks(), rank());
  if (verdict.outcome != cuda::Verdict::Outcome::kAgreed) throw Error(cuda::to_error(verdict, rank(), phase));
  const auto definite = std::find_if_not(words.begin(), words.end(), cuda::takes_any_weights);
  return definite != words.end() ? cuda::call_of(*definite) : call;
}

Phase AllToAllDispatcher::abandon_transport() noexcept {
  if (communicator_ == nullptr || !communicator_->is_usable()) return Phase::kNone;
  communicator_->abort();
  return phase_;
}

// ---- What the host knows --------------------------------------------------------------------------------------------

/// Collective where rows were dropped.
AllToAllDispatcher::Known& AllToAllDispatcher::known(const CudaHandleState& handle) {
  Known& facts = known_[&handle];
  if (facts.handle_id == handle.handle_id) return facts;
  Known fresh{.handle_id = handle.handle_id, .pairs = {}, .sent = {}, .returned = {}};
  if (handle.stats.dropped_in_group == 0) {
    fresh.pairs = PairTable(num_ranks(), handle.pairs);
  } else {
    // The summary counts pairs that fit; where the others leave gaps, only the device knows.
    check_cuda(
        cudaMemcpyAsync(totals_.get(), handle.arrays.totals, sizeof(HandleTotals), cudaMemcpyDeviceToHost, stream()),
        "reading the counts of a handle");
    synchronize();
    std::vector<HandleTotals> all(static_cast<std::size_t>(num_ranks()));
    group().all_gather(totals_.get(), sizeof(HandleTotals), all.data(), Phase::kLayout);
    fresh.pairs = PairTable(all);
  }
  facts = std::move(fresh);
  return facts;
}

std::vector<RowDemand> AllToAllDispatcher::demands_of(CudaHandleState& handle) {
  std::vector<RowDemand> demands = CudaCollective::demands_of(handle);
  const PairTable& pairs = known(handle).pairs;
  for (int peer = 0; peer < num_ranks(); ++peer) {
    demands[static_cast<std::size_t>(peer)].receive_rows = pairs.num_received(peer);
  }
  if (!returns_entries()) return demands;
  struct Entries {
    std::int64_t received;
    std::int64_t sent;
  };
  const Entries own{handle.stats.output_rows, handle.stats.sent_remote_assignments};
  std::vector<Entries> all(demands.size());
  group().all_gather(&own, sizeof(own), all.data(), Phase::kLayout);
  for (std::size_t peer = 0; peer < demands.size(); ++peer) {
    demands[peer].receive_rows = std::max(demands[peer].receive_rows, all[peer].received);
    demands[peer].send_rows = all[peer].sent;
  }
  return demands;
}

/// Fills the tables of entries for this handle, and asks for the counts once.
void AllToAllDispatcher::find_entries(const CudaHandleState& handle, Known& facts) {
  if (entries_of_ == handle.handle_id && !facts.sent.empty()) return;
  EntryArgs args;
  args.group = device_group();
  args.layout = layout();
  args.handle = handle.arrays;
  args.tables = entry_tables_;
  args.counts = reinterpret_cast<EntryCounts*>(entry_counts_.get());
  args.num_packed = facts.pairs.packed_end(rank());
  args.num_blocks = choose(tuning_query(cuda::TunedCall::kCombine, handle.stats.num_tokens)).num_blocks;
  for (int peer = 0; peer < num_ranks(); ++peer) {
    const auto rows = static_cast<std::int32_t>(facts.pairs.packed(rank(), peer).num_rows);
    args.packed_block[peer + 1] = args.packed_block[peer] + rows;
  }
  check_cuda(launch_find_entries(args, stream()), "launching the search for entries");
  entries_of_ = handle.handle_id;
  if (!facts.sent.empty()) return;
  synchronize();
  Block sent;
  Block returned;
  for (int peer = 0; peer < num_ranks(); ++peer) {
    sent.num_rows = args.counts->sent[peer];
    returned.num_rows = args.counts->returned[peer];
    facts.sent.push_back(sent);
    facts.returned.push_back(returned);
    sent.begin += sent.num_rows;
    returned.begin += returned.num_rows;
  }
}

// ---- Exchanges ------------------------------------------------------------------------------------------------------

void AllToAllDispatcher::queue(std::vector<Transfer>& transfers, int peer, const Rows& rows, const Block& sent,
                               const Block& received) const {
  transfers.push_back({.peer = peer,
                       .send = rows.send + sent.begin * rows.row_bytes,
                       .send_bytes = static_cast<std::size_t>(sent.num_rows * rows.row_bytes),
                       .receive = rows.receive + received.begin * rows.row_bytes,
                       .receive_bytes = static_cast<std::size_t>(received.num_rows * rows.row_bytes)});
}

void AllToAllDispatcher::exchange(const std::vector<Transfer>& transfers, Phase phase) {
  phase_ = phase;
  const bool empty = std::all_of(transfers.begin(), transfers.end(), [](const Transfer& transfer) {
    return transfer.send_bytes == 0 && transfer.receive_bytes == 0;
  });
  if (!empty) communicator_->exchange(transfers, stream(), phase);
}

void AllToAllDispatcher::exchange_tokens(const MoveArgs& args, const PairTable& pairs) {
  const bool token_major = layout().token_major();
  const Rows rows{.send = own_section(BufferSection::kSendRows),
                  .receive = own_section(token_major ? args.target : BufferSection::kStageRows),
                  .row_bytes = args.row_bytes};
  const Rows scales{.send = own_section(BufferSection::kSendScales),
                    .receive = own_section(token_major ? BufferSection::kReceiveScales : BufferSection::kStageScales),
                    .row_bytes = args.scale_bytes};
  std::vector<Transfer> transfers;
  for (int peer = 0; peer < num_ranks(); ++peer) {
    if (peer == rank()) continue;
    const Block sent = pairs.packed(rank(), peer);
    const Block received = pairs.received(peer, rank());
    queue(transfers, peer, rows, sent, received);
    if (args.scale_bytes > 0) queue(transfers, peer, scales, sent, received);
  }
  exchange(transfers, args.target == BufferSection::kCombineRows ? Phase::kCombine : Phase::kDispatch);
}

void AllToAllDispatcher::start_move(const CudaHandleState& handle, MoveArgs& args) {
  args.tuning.num_blocks = choose(tuning_query(cuda::TunedCall::kDispatch, handle.stats.num_tokens)).num_blocks;
  if ((args.phases & cuda::kSendPhase) != 0) {
    const PairTable& pairs = known(handle).pairs;
    check_cuda(launch_pack_tokens(args, stream()), "launching the permutation of tokens");
    exchange_tokens(args, pairs);
  }
  if ((args.phases & cuda::kReceivePhase) != 0 && (args.zero_padding || !layout().token_major())) {
    check_cuda(launch_expand_pairs(args, stream()), "launching the placing of rows");
  }
}

void AllToAllDispatcher::send_sums(const CudaHandleState& handle, const SumArgs& args) {
  Known& facts = known(handle);
  Rows rows{.send = own_section(BufferSection::kSendRows),
            .receive = own_section(BufferSection::kStageRows),
            .row_bytes = layout().params().combine_row_bytes};
  if (layout().token_major()) {
    rows.send = args.rows;  // already in the order of the sources
  } else if (returns_entries()) {
    find_entries(handle, facts);
    check_cuda(launch_pack_entries(args, entry_tables_, stream()), "launching the permutation of expert outputs");
  } else {
    check_cuda(launch_sum_pairs(args, stream()), "launching the partial sums");
  }
  std::vector<Transfer> transfers;
  for (int peer = 0; peer < num_ranks(); ++peer) {
    if (peer == rank()) continue;
    const auto idx = static_cast<std::size_t>(peer);
    const Block sent = returns_entries() ? facts.sent[idx] : facts.pairs.received(peer, rank());
    const Block returned = returns_entries() ? facts.returned[idx] : facts.pairs.packed(rank(), peer);
    queue(transfers, peer, rows, sent, returned);
  }
  exchange(transfers, Phase::kCombine);
}

void AllToAllDispatcher::start_sum(const CudaHandleState& handle, SumArgs& args) {
  args.tuning.num_blocks = choose(tuning_query(cuda::TunedCall::kCombine, handle.stats.num_tokens)).num_blocks;
  if ((args.phases & cuda::kSendPhase) != 0) send_sums(handle, args);
  if ((args.phases & cuda::kReceivePhase) == 0) return;
  check_cuda(returns_entries() ? launch_sum_entries(args, entry_tables_, stream()) : launch_sum_tokens(args, stream()),
             "launching the sums");
}

}  // namespace epistle::nccl
