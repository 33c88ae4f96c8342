// Launching the kernels that move and sum rows: plain arguments in, work on a stream out. direct.cpp chooses.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "dispatch/cuda/engine/launch.hpp"

namespace epistle::cuda {

/// MoveArgs where words of scales lie in columns at their receivers, which depends on how many rows each receives: a
/// kernel of its own, so that the others need not know of it.
struct ColumnMoveArgs : MoveArgs {
  std::int32_t num_rows[kMaxRanks] = {};
};

/// What combine with bulk copies sums, and where from.
enum class SumKind {
  kTokenRows,   ///< pulled
  kFlatRows,    ///< of experts, pulled
  kStagedRows,  ///< of experts, summed by their ranks and pushed
};

/// Whether a sum can be made of bulk copies (launch_sum_bulk): its rows and its result lie where these can, and the
/// lanes of a warp hold a token's experts. launch_sum makes any.
[[nodiscard]] inline bool can_sum_in_bulk(const SumArgs& args) noexcept {
  constexpr std::int32_t kLanes = 32;
  const std::uint64_t bits = reinterpret_cast<std::uint64_t>(args.rows) | reinterpret_cast<std::uint64_t>(args.out) |
                             static_cast<std::uint64_t>(args.out_stride);
  return bits % kBulkCopyBytes == 0 && args.handle.top_k <= kLanes;
}

/// As load_kernels(), for those below.
[[nodiscard]] cudaError_t load_direct_kernels(int compute_major);

[[nodiscard]] cudaError_t launch_move(const MoveArgs& args, cudaStream_t stream);
[[nodiscard]] cudaError_t launch_column_move(const ColumnMoveArgs& args, cudaStream_t stream);
[[nodiscard]] cudaError_t launch_sum(const SumArgs& args, cudaStream_t stream);
[[nodiscard]] cudaError_t launch_sum_bulk(const SumArgs& args, cudaStream_t stream);

}  // namespace epistle::cuda
