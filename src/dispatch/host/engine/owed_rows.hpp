// For errors: how many rows of a call the other ranks owe to this one (Error::Context::missing_rows).
#pragma once

#include <cstdint>

#include "dispatch/host/engine/host_handle.hpp"
#include "group/group_impl.hpp"

namespace epistle::host {

/// On their way to experts of `rank`. The handle outlives the answer; null: not known.
[[nodiscard]] inline MissingRows rows_to(const HostHandle* handle, int rank) {
  if (handle == nullptr) return {};
  return [handle, rank](int peer) { return std::int64_t{handle->num_pairs(peer, rank)}; };
}

/// On their way back to tokens of `rank`.
[[nodiscard]] inline MissingRows rows_back_to(const HostHandle* handle, int rank) {
  if (handle == nullptr) return {};
  return [handle, rank](int peer) { return std::int64_t{handle->num_pairs(rank, peer)}; };
}

}  // namespace epistle::host
