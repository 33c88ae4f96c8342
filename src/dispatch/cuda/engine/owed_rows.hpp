// For errors: how many rows of a call the other ranks owe to this one (Error::Context::missing_rows).
#pragma once

#include <cstdint>

#include "dispatch/cuda/engine/cuda_handle.hpp"
#include "group/group_impl.hpp"

namespace epistle::cuda {

[[nodiscard]] inline bool knows_pairs(const CudaHandleState* handle) noexcept {
  return handle != nullptr && handle->finished && !handle->pairs.empty();
}

/// On their way to experts of `rank`; not known as long as the host does not know the counts. The handle outlives the
/// answer; null: not known.
[[nodiscard]] inline MissingRows rows_to(const CudaHandleState* handle, int rank) {
  return [handle, rank](int peer) { return knows_pairs(handle) ? std::int64_t{handle->num_pairs(peer, rank)} : -1; };
}

/// On their way back to tokens of `rank`.
[[nodiscard]] inline MissingRows rows_back_to(const CudaHandleState* handle, int rank) {
  return [handle, rank](int peer) { return knows_pairs(handle) ? std::int64_t{handle->num_pairs(rank, peer)} : -1; };
}

}  // namespace epistle::cuda
