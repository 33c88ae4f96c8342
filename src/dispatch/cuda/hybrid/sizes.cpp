#include "dispatch/cuda/hybrid/route_arrays.hpp"

namespace epistle::cuda {

void carve_routes(BufferCarver& carver, const DispatchLayout& layout, RouteArrays& arrays) noexcept {
  const LayoutParams& params = layout.params();
  // Those that this rank is sent, and its own.
  const std::int64_t entries = params.max_tokens * layout.num_domains();
  carver.take(arrays.sent_tokens, params.max_tokens * layout.max_domains_per_token());
  carver.take(arrays.own_tokens, params.max_tokens);
  carver.take(arrays.terms, entries * params.top_k);
  carver.take(arrays.places, entries * params.top_k);
  carver.take(arrays.token_rows, params.max_tokens * layout.max_domains_per_token());
}

void carve_places(BufferCarver& carver, const DispatchLayout& layout, PlaceArrays& arrays) noexcept {
  const std::int64_t entries = layout.params().max_tokens * layout.params().top_k;
  carver.take(arrays.expert_ids, entries);
  carver.take(arrays.rows, entries);
  carver.take(arrays.weights, entries);
}

}  // namespace epistle::cuda
