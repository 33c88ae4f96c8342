// Launching the kernels that move rows by lines: plain arguments in, work on a stream out.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "dispatch/cuda/engine/launch.hpp"
#include "dispatch/cuda/low_latency/line_plan.hpp"
#include "dispatch/cuda/low_latency/row_flags.hpp"

namespace epistle::cuda {

/// A dispatch with ids, in one call.
struct LineDispatchArgs {
  PrepareArgs routing;
  LinePlan lines;
  const std::byte* rows = nullptr;
  const std::byte* scales = nullptr;
  TokenStrides strides;
  std::int32_t buffer = 0;  ///< this rank's copy of what it receives into
  std::uint32_t phases = kBothPhases;
  bool zero_padding = true;
  bool next_starts_early = false;  ///< the next kernel may take SMs while this one waits for peers
  int num_blocks = 1;
};

/// The same with what few ask for: a kernel of its own, so that the others need not know of it.
struct ExtraDispatchArgs : LineDispatchArgs {
  LineFlags flags;           ///< without a number where none are to be raised
  ScalePlaces scale_places;  ///< of what this rank receives
};

struct LineCombineArgs {
  SumArgs sum;
  LinePlan lines;
  bool wide = false;  ///< chunks, where the ranks of the experts sum first
  bool next_starts_early = false;
  /// The host is told that the dispatch of the handle has passed (Summary::passed_id); null: it knows.
  std::uint64_t* passed_id = nullptr;
  std::uint64_t prepare_id = 0;
};

/// The same of rows that are still being written.
struct MarkedCombineArgs : LineCombineArgs {
  const std::uint32_t* number = nullptr;  ///< device::RowFlags
  const std::uint32_t* done = nullptr;
};

/// Gives the rows of a routing their places at their ranks, which a dispatch by lines leaves open.
struct LineCompleteArgs {
  DeviceGroup group;
  DispatchLayout layout;
  HandleArrays handle;
};

/// Shared memory that a block of any of them takes.
[[nodiscard]] std::int64_t line_shared_bytes(const DispatchLayout& layout) noexcept;
/// Loads the kernels and raises their shared memory limits.
[[nodiscard]] cudaError_t load_line_kernels(const LinePlan& lines);
/// Those with extras beside them.
[[nodiscard]] cudaError_t load_extra_kernels(const LinePlan& lines);
[[nodiscard]] cudaError_t launch_line_dispatch(const LineDispatchArgs& args, cudaStream_t stream);
[[nodiscard]] cudaError_t launch_extra_dispatch(const ExtraDispatchArgs& args, cudaStream_t stream);
[[nodiscard]] cudaError_t launch_line_combine(const LineCombineArgs& args, cudaStream_t stream);
[[nodiscard]] cudaError_t launch_marked_combine(const MarkedCombineArgs& args, cudaStream_t stream);
[[nodiscard]] cudaError_t launch_line_complete(const LineCompleteArgs& args, cudaStream_t stream);

}  // namespace epistle::cuda
