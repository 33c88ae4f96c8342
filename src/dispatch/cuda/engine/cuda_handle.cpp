#include "dispatch/cuda/engine/cuda_handle.hpp"

#include <algorithm>
#include <atomic>

#include "gpu/cuda_error.hpp"

namespace epistle::cuda {

CudaHandleState::CudaHandleState(int device, const DispatchLayout& layout, int rank)
    : layout_(layout), rank_(rank), ranks_(layout.params().num_ranks) {
  const LayoutParams& params = layout.params();
  const std::int64_t tokens = params.max_tokens;
  const std::int64_t top_k = params.top_k;
  const std::int64_t slots = layout.max_ranks_per_token();
  const std::int64_t rows = layout.max_output_rows();
  const std::int64_t num_records = layout.token_major() ? 0 : params.max_tokens * ranks_;
  const std::int64_t experts = layout.partition().max_local_experts();
  // First the sizes, then the memory, then the places in it.
  for (const bool placing : {false, true}) {
    BufferCarver carver(memory_.get());
    carver.take(arrays.expert_ids, tokens * top_k);
    carver.take(arrays.weights, tokens * top_k);
    carver.take(arrays.dst_row, tokens * top_k);
    carver.take(arrays.sends, tokens * slots);
    carver.take(arrays.send_weights, tokens * slots);
    carver.take(arrays.totals, 1);
    carver.take(arrays.pair_records, num_records * layout.pair_record_bytes());
    carver.take(arrays.src_rank, rows);
    carver.take(arrays.src_token, rows);
    carver.take(arrays.local_expert_ids, layout.token_major() ? rows * top_k : 0);
    carver.take(arrays.row_weights, rows * layout.weights_per_row());
    carver.take(arrays.expert_counts, experts);
    carver.take(arrays.expert_begin, experts + 1);
    carver.take(arrays.expert_dropped, experts);
    if (!placing) memory_ = allocate_on(device, carver.num_bytes());
  }
  arrays.top_k = params.top_k;
  arrays.sends_per_token = static_cast<std::int32_t>(slots);
  const std::int64_t summary_ints = std::int64_t{ranks_} * ranks_ + 2 * std::int64_t{ranks_};
  pinned_ = PinnedMemory(static_cast<std::int64_t>(sizeof(Summary)) +
                         summary_ints * static_cast<std::int64_t>(sizeof(std::int32_t)));
  summary = reinterpret_cast<Summary*>(pinned_.get());
}

void CudaHandleState::begin(std::uint64_t prepare_id, std::int64_t num_tokens) {
  handle_id = prepare_id;
  num_ranks = static_cast<std::size_t>(ranks_);
  arrays.handle_id = static_cast<std::uint32_t>(prepare_id);
  arrays.num_tokens = num_tokens;
  checked = false;
  finished = false;
  stats = RoutingStats{.num_tokens = num_tokens};
  const LayoutParams& params = layout_.params();
  const ExpertPartition partition = layout_.partition();
  output = DispatchOutput{};
  // What does not depend on the routing; under exact sizing finish() corrects the rows.
  output.num_rows = layout_.max_output_rows();
  if (params.layout == OutputLayout::kExpertSlots) {
    output.num_rows = params.capacity_rows * partition.num_local_experts(rank_);
  }
  output.row_bytes = params.row_bytes;
  output.scale_bytes = params.scale_bytes;
  output.src_rank = arrays.src_rank;
  output.src_token = arrays.src_token;
  output.local_expert_ids = layout_.token_major() ? arrays.local_expert_ids : nullptr;
  output.weights = arrays.row_weights;
  output.num_local_experts = partition.num_local_experts(rank_);
  output.first_expert = partition.first_expert(rank_);
  output.expert_counts = arrays.expert_counts;
  output.expert_begin = layout_.token_major() ? nullptr : arrays.expert_begin;
  output.expert_dropped = arrays.expert_dropped;
  output.num_dropped = -1;  // not known yet
}

bool CudaHandleState::is_complete() const noexcept {
  // The device writes the id last.
  return std::atomic_ref<std::uint64_t>(summary->prepare_id).load(std::memory_order_acquire) == handle_id;
}

void CudaHandleState::finish() {
  finished = true;
  stats = RoutingStats{.num_tokens = stats.num_tokens};
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
  stats.padding_rows = summary->padding_rows;
  stats.dropped_by_this_rank = summary->dropped_by_this_rank;
  stats.dropped_in_group = summary->dropped_in_group;
  output.num_rows = summary->num_rows;
  output.num_dropped = summary->dropped_here;
}

void CudaHandleState::wait_for_counts() {
  // Under capacity sizing a graph may have run prepare again.
  if (finished && layout_.params().sizing == Sizing::kExact) return;
  if (!waiter) {
    if (finished) return;
    throw Error(ErrorCode::kHandleMismatch, "the dispatcher of this handle is gone, and its counts were never read");
  }
  waiter(*this);
}

}  // namespace epistle::cuda
