// Launching the kernels around copies by the copy engines: plain arguments in, work on a stream out.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

#include "dispatch/cuda/direct/run_list.hpp"
#include "dispatch/cuda/engine/launch.hpp"

namespace epistle::cuda {

/// The two kernels around copies by the copy engines, which neither wait for flags nor set them.
struct CopySignalArgs {
  DeviceGroup group;
  const HandleTotals* totals = nullptr;
  std::uint32_t phases = kBothPhases;
};

struct RunListArgs {
  HandleArrays handle;
  std::int32_t num_ranks = 1;
  std::int32_t num_chunks = 1;
  RunList list;
};

/// Tokens are packed in chunks of nearly equal size; this is where one begins.
[[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t chunk_begin(std::int64_t num_tokens, std::int32_t num_chunks,
                                                                     std::int32_t chunk) noexcept {
  return num_tokens * chunk / num_chunks;
}

struct PackArgs {
  DeviceGroup group;
  HandleArrays handle;
  const std::byte* rows = nullptr;
  const std::byte* scales = nullptr;
  std::int64_t row_bytes = 0;
  std::int64_t scale_bytes = 0;
  TokenStrides strides;
  std::int64_t token_begin = 0;
  std::int64_t token_end = 0;
  std::byte* packed_rows = nullptr;
  std::byte* packed_scales = nullptr;
  /// By destination: what a row there is moved by to give its place in packed_rows.
  std::int32_t row_shift[kMaxRanks] = {};
  int num_blocks = 1;
};

/// As load_kernels(), for those below.
[[nodiscard]] cudaError_t load_copy_kernels();

/// Announces the call and waits until all ranks have started it: what is behind it on the stream may write to peers.
[[nodiscard]] cudaError_t launch_start_copies(const CopySignalArgs& args, cudaStream_t stream);
/// Send half: tells the peers that what is before it on the stream has arrived. Receive half: waits for theirs.
[[nodiscard]] cudaError_t launch_finish_copies(const CopySignalArgs& args, cudaStream_t stream);
[[nodiscard]] cudaError_t launch_find_runs(const RunListArgs& args, int num_blocks, cudaStream_t stream);
[[nodiscard]] cudaError_t launch_pack(const PackArgs& args, cudaStream_t stream);

}  // namespace epistle::cuda
