#include "dispatch/host/direct/direct.hpp"

#include "dispatch/host/engine/wire_rows.hpp"

namespace epistle::host {

void DirectMover::send_rows(const MoveJob& job) {
  const HostHandle& handle = *job.handle;
  const StoreMode mode = context_.store_mode(static_cast<std::int64_t>(handle.sends.size()) * job.row_bytes);
  const WireRows rows(context_, job);
  context_.pool.parallel_for(handle.num_tokens, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t token = begin; token < end; ++token) {
      const auto t = static_cast<std::size_t>(token);
      if (handle.send_begin[t] == handle.send_begin[t + 1]) continue;
      write_to_places(context_, job, handle, t, rows.at(token), mode);
    }
    store_fence();
  });
}

void DirectMover::receive_rows(const MoveJob& job) {
  if (context_.layout().token_major()) return;  // the senders have done it all
  const HostHandle& handle = *job.handle;
  std::byte* rows = context_.own_section(job.target);
  const ReceivedScales scales = context_.received_scales(context_.rank, handle);
  const StoreMode mode = context_.store_mode(handle.description.num_rows * job.row_bytes);
  context_.pool.parallel_for(handle.description.num_rows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t primary = begin; primary < end; ++primary) {
      if (handle.records[static_cast<std::size_t>(primary)].primary_row != primary) continue;
      for (std::int32_t row = handle.records[static_cast<std::size_t>(primary)].next_row; row >= 0;
           row = handle.records[static_cast<std::size_t>(row)].next_row) {
        copy_row(rows + primary * job.row_bytes, rows + row * job.row_bytes, static_cast<std::size_t>(job.row_bytes),
                 mode);
        if (job.scale_bytes > 0) scales.copy(primary, row);
      }
    }
    store_fence();
  });
}

}  // namespace epistle::host
