#include "dispatch/cuda/engine/cuda_handle.hpp"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <utility>

#include "epistle/error.hpp"

#include "dispatch/cuda/engine/context.hpp"
#include "dispatch/cuda/engine/sizes.hpp"
#include "gpu/cuda_error.hpp"
#include "gpu/stream.hpp"

namespace epistle::cuda {
namespace {

/// Lets this thread ask the device while it captures a stream: of another stream, which is no part of the graph.
class RelaxedCapture {
 public:
  RelaxedCapture() { check_cuda(cudaThreadExchangeStreamCaptureMode(&mode_), "setting a capture mode"); }
  ~RelaxedCapture() { static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode_)); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace

CudaHandleState::CudaHandleState(const EngineContext& context, std::shared_ptr<PinnedMemory> told, std::int64_t told_at)
    : layout_(context.layout()),
      device_(context.device),
      rank_(context.rank()),
      ranks_(context.num_ranks()),
      told_(std::move(told)),
      probe_(told_->get() + told_at) {
  memory_ = context.own_memory.carve([this](BufferCarver& carver) { carve_handle(carver, layout_, arrays); });
  summary = reinterpret_cast<Summary*>(probe_ + kProbeBytes);
  pairs.reserve(static_cast<std::size_t>(ranks_) * static_cast<std::size_t>(ranks_));
}

void CudaHandleState::begin(std::uint64_t id, std::int64_t tokens, const PlacedExperts& placed) {
  prepare_id = id;
  num_tokens = tokens;
  arrays.handle_id = static_cast<std::uint32_t>(id);
  arrays.num_tokens = tokens;
  checked = false;
  finished = false;
  routed = false;
  is_left_on_device = false;
  stats = RoutingStats{.num_tokens = tokens};
  describe(placed);
}

void CudaHandleState::describe(const PlacedExperts& placed) {
  const LayoutParams& params = layout_.params();
  const ExpertPartition partition = layout_.partition();
  const bool token_major = layout_.token_major();
  const std::int32_t num_local = placed.is_trivial() ? partition.num_local_experts(rank_)
                                                     : placed.slots_of_rank()[static_cast<std::size_t>(rank_)];
  // What does not depend on the routing; under exact sizing finish() corrects the rows.
  const std::int64_t num_rows =
      params.layout == OutputLayout::kExpertBlocks ? params.capacity_rows * num_local : layout_.max_output_rows();
  description = RowDescription{.num_rows = num_rows,
                               .src_rank = arrays.src_rank,
                               .src_token = arrays.src_token,
                               .local_experts = token_major ? arrays.local_expert_ids : nullptr,
                               .row_expert = token_major ? nullptr : arrays.row_expert,
                               .weights = arrays.row_weights,
                               .num_local_experts = num_local,
                               .first_expert = placed.is_trivial() ? partition.first_expert(rank_) : kNoExpert,
                               .placement_generation = placed.generation(),
                               .expert_counts = arrays.expert_counts,
                               .expert_begin = token_major ? nullptr : arrays.expert_begin,
                               .expert_dropped = arrays.expert_dropped};
}

bool CudaHandleState::is_complete() const noexcept { return has_summary() || has_passed(); }

bool CudaHandleState::has_summary() const noexcept {
  // The device writes the id last.
  return std::atomic_ref<std::uint64_t>(summary->prepare_id).load(std::memory_order_acquire) == prepare_id;
}

bool CudaHandleState::has_passed() const noexcept {
  return std::atomic_ref<std::uint64_t>(summary->passed_id).load(std::memory_order_acquire) == prepare_id;
}

bool CudaHandleState::has_passed_on_device() {
  if (!is_left_on_device) return false;
  const DeviceGuard guard(device_);
  const RelaxedCapture relaxed;
  cudaStream_t stream = private_stream(device_);
  auto* seen = reinterpret_cast<std::uint64_t*>(probe_);
  check_cuda(cudaMemcpyAsync(seen, &arrays.summary->passed_id, sizeof(*seen), cudaMemcpyDeviceToHost, stream),
             "looking whether the counts of a handle are there");
  check_cuda(cudaStreamSynchronize(stream), "looking whether the counts of a handle are there");
  return *seen == prepare_id;
}

void CudaHandleState::fetch_summary() {
  const DeviceGuard guard(device_);
  const RelaxedCapture relaxed;
  cudaStream_t stream = private_stream(device_);
  // Not the ids, which the device may be writing again.
  constexpr std::size_t kBegin = offsetof(Summary, finding);
  check_cuda(cudaMemcpyAsync(reinterpret_cast<std::byte*>(summary) + kBegin,
                             reinterpret_cast<const std::byte*>(arrays.summary) + kBegin,
                             static_cast<std::size_t>(summary_bytes(layout_)) - kBegin, cudaMemcpyDeviceToHost, stream),
             "reading the counts of a handle");
  check_cuda(cudaStreamSynchronize(stream), "reading the counts of a handle");
}

void CudaHandleState::finish() {
  finished = true;
  if (is_left_on_device) fetch_summary();
  stats = RoutingStats{.num_tokens = summary->num_tokens};
  const std::int32_t* matrix = pair_matrix();
  pairs.assign(matrix, matrix + static_cast<std::ptrdiff_t>(ranks_) * ranks_);
  for (int peer = 0; peer < ranks_; ++peer) {
    const std::int32_t sent = num_pairs(rank_, peer);
    const std::int32_t got = num_pairs(peer, rank_);
    stats.sent_rows += sent;
    stats.received_rows += got;
    if (peer == rank_) continue;
    stats.sent_remote_rows += sent;
    stats.received_remote_rows += got;
  }
  stats.sent_remote_assignments = summary->sent_remote_assignments;
  stats.output_rows = summary->content_rows;
  stats.dropped_by_this_rank = summary->dropped_by_this_rank;
  stats.dropped_in_group = summary->dropped_in_group;
  stats.dropped_here = summary->dropped_here;
  stats.lost_by_this_rank = summary->lost_by_this_rank;
  // The device counts blocks of all slots that a placement may have; those of this one are known.
  if (layout_.params().layout != OutputLayout::kExpertBlocks) description.num_rows = summary->num_rows;
  stats.padding_rows = description.num_rows - stats.output_rows;
}

/// True when nothing can change any more, or nobody is there to tell. Under capacity sizing a graph may run prepare
/// again.
bool CudaHandleState::is_settled() const noexcept {
  return finished && (!reader_ || layout_.params().sizing == SizingMode::kExact);
}

void CudaHandleState::wait_for_counts() {
  if (is_settled()) return;
  if (!reader_) {
    throw Error(ErrorCode::kHandleMismatch, "the dispatcher of this handle is gone, and its counts were never read");
  }
  reader_(*this, true);
}

std::vector<std::int32_t> CudaHandleState::read_expert_counts() {
  wait_for_counts();
  auto* counts = reinterpret_cast<std::int32_t*>(summary + 1) + ranks_ * (ranks_ + 2);
  const auto num = static_cast<std::size_t>(description.num_local_experts);
  if (is_left_on_device) {
    const DeviceGuard guard(device_);
    cudaStream_t stream = private_stream(device_);
    check_cuda(cudaMemcpyAsync(counts, arrays.expert_counts, num * sizeof(*counts), cudaMemcpyDeviceToHost, stream),
               "reading the counts of experts");
    check_cuda(cudaStreamSynchronize(stream), "reading the counts of experts");
  }
  return {counts, counts + num};
}

bool CudaHandleState::counts_are_known() {
  if (is_settled()) return true;
  if (!reader_ || (!is_complete() && !has_passed_on_device())) return false;
  reader_(*this, false);
  return true;
}

}  // namespace epistle::cuda
