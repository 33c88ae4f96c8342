#include <algorithm>

#include "dispatch/cuda/direct/run_list.hpp"

namespace epistle::cuda {

void carve_run_list(BufferCarver& carver, int num_ranks, RunList& list) noexcept {
  carver.take(list.num_starts, num_ranks);
  carver.take(list.first_row, num_ranks);
  carver.take(list.chunk_rows, std::int64_t{num_ranks} * kMaxPackChunks);
  carver.take(list.starts, std::int64_t{num_ranks} * kMaxRunStarts);
}

void carve_packed(BufferCarver& carver, const DispatchLayout& layout, std::byte*& rows, std::byte*& scales) noexcept {
  const LayoutParams& params = layout.params();
  const std::int64_t num_rows = std::max<std::int64_t>(1, params.max_tokens * layout.max_other_ranks_per_token());
  carver.take(rows, num_rows * params.row_bytes);
  carver.take(scales, num_rows * params.scale_bytes);
}

}  // namespace epistle::cuda
