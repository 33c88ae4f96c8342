// What survivors do when a rank has failed: they mask it out, and whoever fails while they do.
#pragma once

#include <algorithm>
#include <vector>

#include "epistle/error.hpp"
#include "epistle/group.hpp"

namespace epistle::testing {

/// Whether the error is of another rank, which can be masked out.
[[nodiscard]] inline bool blames_a_rank(const Error& error, const std::vector<int>& masked, int own_rank) {
  const int peer = error.context().peer_rank;
  const bool is_loss = error.code() == ErrorCode::kPeerLost || error.code() == ErrorCode::kTimeout;
  return is_loss && peer >= 0 && peer != own_rank && std::find(masked.begin(), masked.end(), peer) == masked.end();
}

/// Masks the rank out that `error` names, and those that turn out to be lost on the way. Rethrows what is no rank's
/// loss.
inline void go_on_without(Group& group, const Error& error) {
  std::vector<int> masked = group.masked();
  if (!blames_a_rank(error, masked, group.rank())) throw Error(error);
  masked.push_back(error.context().peer_rank);
  for (;;) {
    try {
      return group.set_mask(masked);
    } catch (const Error& next) {
      if (!blames_a_rank(next, masked, group.rank())) throw;
      masked.push_back(next.context().peer_rank);
    }
  }
}

}  // namespace epistle::testing
