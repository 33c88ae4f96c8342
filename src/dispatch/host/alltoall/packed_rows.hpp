// Where rows lie in the packed buffers of `alltoall`. A send buffer holds the columns (destination ranks, or experts)
// in ascending order, in each the rows by token. What a rank receives of one source it keeps together, sources in
// ascending order; what comes back likewise, by the rank that returns it. All ranks have the same tables, so each knows
// where rows lie on both ends.
#pragma once

#include <cstdint>

#include "dispatch/host/engine/host_handle.hpp"
#include "layout/dispatch_layout.hpp"

namespace epistle::host {

/// Rows that one rank has for another, one behind the other.
struct Segment {
  std::int64_t begin = 0;
  std::int64_t num_rows = 0;
};

/// Of one routing: `src` is the rank of the tokens, `dst` that of the experts.
class PackedRows {
 public:
  PackedRows(const DispatchLayout& layout, const HostHandle& handle) noexcept : layout_(layout), handle_(handle) {}

  /// Rows that `src` packs for `dst`, in its send buffer.
  [[nodiscard]] Segment sent(int src, int dst) const;
  /// Where they begin in what `dst` receives.
  [[nodiscard]] std::int64_t received_begin(int src, int dst) const;

  /// The same rows, or what belongs to each of them, as `dst` has them to give back: token rows as they lie in the
  /// output, others as they were received.
  [[nodiscard]] Segment returned(int src, int dst) const;
  /// Where they begin in what `src` gets back.
  [[nodiscard]] std::int64_t brought_begin(int src, int dst) const { return sent(src, dst).begin; }

  /// Sums of `src`'s (token, rank) pairs, as `dst` gives them back.
  [[nodiscard]] Segment returned_sums(int src, int dst) const;
  /// Where they begin in what `src` gets back.
  [[nodiscard]] std::int64_t brought_sums_begin(int src, int dst) const;

 private:
  const DispatchLayout& layout_;
  const HostHandle& handle_;
};

}  // namespace epistle::host
