// The rows of a move as they travel: as the caller gave them, or quantised on the way.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dispatch/host/engine/host_context.hpp"
#include "dispatch/host/engine/row_kernels.hpp"
#include "dispatch/host/engine/row_mover.hpp"

namespace epistle::host {

/// One row, and its scales one behind the other.
struct WireRow {
  const std::byte* row = nullptr;
  const std::byte* scales = nullptr;
};

class WireRows {
 public:
  /// Refers to both.
  WireRows(const HostContext& context, const MoveJob& job) noexcept : config_(context.config), job_(job) {}

  /// The row of a token. What is not as the caller has it lies in memory of this thread until the next is asked for: so
  /// a row that goes to several places is asked for once.
  [[nodiscard]] WireRow at(std::int64_t token) const;
  /// The same, straight to where it is wanted.
  void write(std::int64_t token, std::byte* row, std::byte* scales, StoreMode mode) const;

 private:
  [[nodiscard]] const std::byte* given(std::int64_t token) const noexcept {
    return job_.rows + token * job_.row_stride;
  }
  void quantise(std::int64_t token, std::byte* row, std::byte* scales) const noexcept;
  void gather_scales(std::int64_t token, std::byte* target) const noexcept;

  const ResolvedConfig& config_;
  const MoveJob& job_;
};

/// Writes a row to the final places of the `idx`-th token of `table`, of whose handle the job is: it is read from
/// memory once, and from the cache after that.
inline void write_to_places(const HostContext& context, const MoveJob& job, const TokenTable& table, std::size_t idx,
                            const WireRow& row, StoreMode mode) {
  const auto end = static_cast<std::size_t>(table.send_begin[idx + 1]);
  for (auto at = static_cast<std::size_t>(table.send_begin[idx]); at < end; ++at) {
    const SendEntry& send = table.sends[at];
    copy_row(row.row, context.section(send.dst_rank, job.target) + send.row * job.row_bytes,
             static_cast<std::size_t>(job.row_bytes), mode);
    if (job.scale_bytes > 0) context.received_scales(send.dst_rank, *job.handle).put(send.row, row.scales);
  }
}

}  // namespace epistle::host
