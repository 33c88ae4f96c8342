#include "dispatch/host/low_latency/low_latency.hpp"

#include <algorithm>
#include <cstring>

#include "dispatch/host/engine/scales.hpp"

namespace epistle::host {

/// The places of the rows are not known here, only their experts.
bool LowLatencyMover::leaves_this_rank(const HostHandle& handle, std::int64_t token) const noexcept {
  const auto top_k = static_cast<std::ptrdiff_t>(context_.config.top_k);
  const auto ids = handle.expert_ids.begin() + token * top_k;
  return std::any_of(ids, ids + top_k, [&](std::int32_t expert) {
    return expert != kNoExpert && context_.rank_of_expert[static_cast<std::size_t>(expert)] != context_.rank;
  });
}

void LowLatencyMover::publish(const MoveJob& job) {
  const HostHandle& handle = *job.handle;
  std::byte* rows = context_.own_section(BufferSection::kSendRows) + places_.rows_offset(job.exchange);
  std::byte* scales = context_.own_section(BufferSection::kSendScales) + places_.scales_offset(job.exchange);
  const StoreMode mode = context_.store_mode(handle.num_tokens * job.row_bytes);
  context_.pool.parallel_for(handle.num_tokens, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t token = begin; token < end; ++token) {
      if (job.scale_bytes > 0) copy_scales(job.scales, token, job.scale_bytes, scales + token * job.scale_bytes);
      if (!leaves_this_rank(handle, token)) continue;
      copy_row(job.rows + token * job.row_stride, rows + token * job.row_bytes, static_cast<std::size_t>(job.row_bytes),
               mode);
    }
    store_fence();
  });
}

void LowLatencyMover::fetch(const MoveJob& job) {
  const HostHandle& handle = *job.handle;
  const bool token_major = context_.layout().token_major();
  std::byte* const rows = context_.own_section(job.target);
  std::byte* const scales = context_.own_section(BufferSection::kReceiveScales);
  const StoreMode mode = context_.store_mode(handle.description.num_rows * job.row_bytes);
  const auto take = [&](std::size_t src_row, std::int32_t target_row) {
    const std::int32_t src_rank = handle.src_rank[src_row];
    const std::int64_t token = handle.src_token[src_row];
    // This rank's own rows are still where the caller has them.
    const std::byte* const source = src_rank == context_.rank
                                        ? job.rows + token * job.row_stride
                                        : context_.section(src_rank, BufferSection::kSendRows) +
                                              places_.rows_offset(job.exchange) + token * job.row_bytes;
    copy_row(source, rows + target_row * job.row_bytes, static_cast<std::size_t>(job.row_bytes), mode);
    if (job.scale_bytes == 0) return;
    std::memcpy(scales + target_row * job.scale_bytes,
                context_.section(src_rank, BufferSection::kSendScales) + places_.scales_offset(job.exchange) +
                    token * job.scale_bytes,
                static_cast<std::size_t>(job.scale_bytes));
  };
  context_.pool.parallel_for(handle.description.num_rows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t idx = begin; idx < end; ++idx) {
      const auto row = static_cast<std::size_t>(idx);
      if (handle.src_rank[row] < 0) continue;
      if (token_major) {
        take(row, static_cast<std::int32_t>(idx));
        continue;
      }
      // All rows of one token in a row: it crosses once, and comes out of the cache after that.
      if (handle.records[row].primary_row != idx) continue;
      for (auto next = static_cast<std::int32_t>(idx); next >= 0;
           next = handle.records[static_cast<std::size_t>(next)].next_row) {
        take(row, next);
      }
    }
    store_fence();
  });
}

}  // namespace epistle::host
