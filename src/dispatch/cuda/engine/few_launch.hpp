// Launching prepare where a rank has few tokens.
#pragma once

#include "dispatch/cuda/device/few_tokens.hpp"
#include "dispatch/cuda/engine/launch.hpp"

namespace epistle::cuda {

/// Of a kernel of its own, so that the one for many tokens need not know of it. Ranks may differ in which they take.
struct FewPrepareArgs : PrepareArgs {
  FewTokens few;
  /// Nothing but a fault is told to the host before it asks: a kernel waits for what it writes there.
  bool leaves_summary = false;
};

/// Shared memory that prepare takes for tiles of so many tokens.
[[nodiscard]] std::int64_t prepare_shared_bytes(const PrepareShape& shape, int tile_tokens) noexcept;
/// The same for few tokens, at most.
[[nodiscard]] std::int64_t few_prepare_shared_bytes(const PrepareShape& shape, int tile_tokens) noexcept;

[[nodiscard]] cudaError_t launch_few_prepare(const FewPrepareArgs& args, const PrepareLaunch& launch,
                                             cudaStream_t stream);

}  // namespace epistle::cuda
