#include "dispatch/host/low_latency/low_latency.hpp"

#include <algorithm>

#include "dispatch/host/engine/wire_rows.hpp"

namespace epistle::host {

/// The places of the rows are not known here, only their experts.
bool LowLatencyMover::is_published(const MoveJob& job, std::int64_t token) const noexcept {
  const auto top_k = static_cast<std::ptrdiff_t>(context_.config.top_k);
  const auto ids = job.handle->expert_ids.begin() + token * top_k;
  return std::any_of(ids, ids + top_k, [&](std::int32_t expert) {
    if (expert == kNoExpert) return false;
    return publishes_own(job) || context_.rank_of_expert[static_cast<std::size_t>(expert)] != context_.rank;
  });
}

void LowLatencyMover::publish(const MoveJob& job) {
  const HostHandle& handle = *job.handle;
  std::byte* rows = context_.own_section(BufferSection::kSendRows) + places_.rows_offset(job.exchange);
  std::byte* scales = context_.own_section(BufferSection::kSendScales) + places_.scales_offset(job.exchange);
  const StoreMode mode = context_.store_mode(handle.num_tokens * job.row_bytes);
  const WireRows wire_rows(context_, job);
  context_.pool.parallel_for(handle.num_tokens, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t token = begin; token < end; ++token) {
      if (!is_published(job, token)) continue;
      wire_rows.write(token, rows + token * job.row_bytes, scales + token * job.scale_bytes, mode);
    }
    store_fence();
  });
}

void LowLatencyMover::fetch(const MoveJob& job) {
  const HostHandle& handle = *job.handle;
  const bool token_major = context_.layout().token_major();
  std::byte* const rows = context_.own_section(job.target);
  const ReceivedScales scales = context_.received_scales(context_.rank, handle);
  const StoreMode mode = context_.store_mode(handle.description.num_rows * job.row_bytes);
  const WireRows own_rows(context_, job);
  const auto source_of = [&](std::size_t row) -> WireRow {
    const std::int32_t src_rank = handle.src_rank[row];
    const std::int64_t token = handle.src_token[row];
    if (src_rank == context_.rank && !publishes_own(job)) return own_rows.at(token);
    return {.row = context_.section(src_rank, BufferSection::kSendRows) + places_.rows_offset(job.exchange) +
                   token * job.row_bytes,
            .scales = context_.section(src_rank, BufferSection::kSendScales) + places_.scales_offset(job.exchange) +
                      token * job.scale_bytes};
  };
  const auto take = [&](const WireRow& source, std::int64_t target_row) {
    copy_row(source.row, rows + target_row * job.row_bytes, static_cast<std::size_t>(job.row_bytes), mode);
    if (job.scale_bytes > 0) scales.put(target_row, source.scales);
  };
  context_.pool.parallel_for(handle.description.num_rows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t idx = begin; idx < end; ++idx) {
      const auto row = static_cast<std::size_t>(idx);
      if (handle.src_rank[row] < 0) continue;
      if (!token_major && handle.records[row].primary_row != idx) continue;
      const WireRow source = source_of(row);
      if (token_major) {
        take(source, idx);
        continue;
      }
      // All rows of one token in a row: it crosses once, and comes out of the cache after that.
      for (auto next = static_cast<std::int32_t>(idx); next >= 0;
           next = handle.records[static_cast<std::size_t>(next)].next_row) {
        take(source, next);
      }
    }
    store_fence();
  });
}

}  // namespace epistle::host
