// The kernels around an exchange: permute before it, unpermute or sum after it. They touch this rank's memory only.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "dispatch/cuda/alltoall/exchange_plan.hpp"
#include "dispatch/cuda/engine/launch.hpp"

namespace epistle::nccl {

struct EntryArgs {
  cuda::DeviceGroup group;
  DispatchLayout layout;
  cuda::HandleArrays handle;
  EntryTables tables;
  EntryCounts* counts = nullptr;
  std::int64_t num_packed = 0;                          ///< pairs this rank packs
  std::int32_t packed_block[cuda::kMaxRanks + 1] = {};  ///< by destination: its first packed pair; an empty block has
                                                        ///< the begin of the next
  int num_blocks = 1;
};

/// Copies tokens' rows (and scales) to the send buffer, by destination, and those of this rank's own experts to their
/// rows.
[[nodiscard]] cudaError_t launch_pack_tokens(const cuda::MoveArgs& args, cudaStream_t stream);
/// Copies received pairs from the stage to their rows (expert layouts), and zeroes padding.
[[nodiscard]] cudaError_t launch_expand_pairs(const cuda::MoveArgs& args, cudaStream_t stream);

/// Sums the rows of every received pair into the send buffer (hierarchical sums of expert rows).
[[nodiscard]] cudaError_t launch_sum_pairs(const cuda::SumArgs& args, cudaStream_t stream);
/// Sums this rank's tokens from the stage and its own rows: one row per (token, rank).
[[nodiscard]] cudaError_t launch_sum_tokens(const cuda::SumArgs& args, cudaStream_t stream);

/// Fills the tables and the counts.
[[nodiscard]] cudaError_t launch_find_entries(const EntryArgs& args, cudaStream_t stream);
/// Copies the rows of pairs of other ranks to the send buffer, pair by pair in top-k order.
[[nodiscard]] cudaError_t launch_pack_entries(const cuda::SumArgs& args, const EntryTables& tables,
                                              cudaStream_t stream);
/// Sums this rank's tokens in top-k order from the stage and its own rows: one row per (token, expert).
[[nodiscard]] cudaError_t launch_sum_entries(const cuda::SumArgs& args, const EntryTables& tables, cudaStream_t stream);

/// Loads every kernel, so that no launch has to later, while other kernels run.
[[nodiscard]] cudaError_t load_exchange_kernels();
[[nodiscard]] cudaError_t load_sum_kernels();
[[nodiscard]] cudaError_t load_entry_kernels();

}  // namespace epistle::nccl
