#include "dispatch/cuda/alltoall/exchange_plan.hpp"

namespace epistle::nccl {

void carve_entries(cuda::BufferCarver& carver, const DispatchLayout& layout, EntryTables& tables) noexcept {
  const LayoutParams& params = layout.params();
  carver.take(tables.packed_begin, params.max_tokens * layout.max_other_ranks_per_token() + 1);
  carver.take(tables.received_begin, params.max_tokens * params.num_ranks + 1);
  carver.take(tables.stage, params.max_tokens * params.top_k);
}

}  // namespace epistle::nccl
