// The tables of a routing as kernels read them: RouteTables, in device memory.
#pragma once

#include <cstdint>

#include "dispatch/cuda/engine/buffer_carver.hpp"
#include "dispatch/link/route_tables.hpp"
#include "layout/dispatch_layout.hpp"

namespace epistle::cuda {

struct RouteArrays {
  std::int32_t* sent_tokens = nullptr;
  std::int32_t* own_tokens = nullptr;
  RouteTerm* terms = nullptr;
  RoutePlace* places = nullptr;
  DomainRow* token_rows = nullptr;
};

/// Room for every routing of a layout.
void carve_routes(BufferCarver& carver, const DispatchLayout& layout, RouteArrays& arrays) noexcept;

/// What a handle has of a rank's own tokens, on its way to the host: [max_tokens, top_k] each.
struct PlaceArrays {
  std::int32_t* expert_ids = nullptr;
  std::int32_t* rows = nullptr;
  float* weights = nullptr;
};
void carve_places(BufferCarver& carver, const DispatchLayout& layout, PlaceArrays& arrays) noexcept;

}  // namespace epistle::cuda
