// From the order in which rows are received (by source, then by column) to that of the output (by column, then by
// source).
#pragma once

#include <cstdint>

#include "dispatch/host/engine/host_handle.hpp"
#include "layout/dispatch_layout.hpp"

namespace epistle::host {

/// Rows that stay together between the two.
struct RowRun {
  int src_rank = 0;
  std::int64_t received_begin = 0;
  std::int64_t output_begin = 0;
  std::int64_t num_rows = 0;
};

/// Calls `visit(run)` for all that `rank` receives. Of token rows a run is all that there is of a source.
template <typename Visit>
void for_each_run(const DispatchLayout& layout, const HostHandle& handle, int rank, const Visit& visit) {
  const ExpertPartition partition = layout.partition();
  const int first = layout.token_major() ? rank : partition.first_expert(rank);
  const int num_columns = layout.token_major() ? 1 : partition.num_local_experts(rank);
  std::int64_t received = 0;
  for (int src = 0; src < layout.params().num_ranks; ++src) {
    for (int column = first; column < first + num_columns; ++column) {
      const std::int64_t num_rows = handle.tables.num_kept(src, column);
      visit(RowRun{.src_rank = src,
                   .received_begin = received,
                   .output_begin = handle.tables.row_begin(src, column),
                   .num_rows = num_rows});
      received += num_rows;
    }
  }
}

}  // namespace epistle::host
