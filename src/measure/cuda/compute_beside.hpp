// Kernels that stand in for the matrix products of a model while rows are moved: SMs that a dispatcher takes are
// missing there, and show.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "gpu/stream.hpp"
#include "measure/cuda/gpu_memory.hpp"
#include "measure/cuda/timed_event.hpp"

namespace epistle {

/// One unit is a tile, which one block of threads computes. The tiles have a stream of the lowest priority, as engines
/// have it: calls of dispatchers come in where a tile ends.
class ComputeBeside {
 public:
  ComputeBeside();

  /// `num_units` tiles, behind what is on `stream` now.
  void start(cudaStream_t stream, std::int64_t num_units);
  /// What is put on `stream` from now on waits for the tiles.
  void join(cudaStream_t stream);

 private:
  DeviceMemory sink_;
  cuda::OwnedStream own_;
  TimedEvent begin_;
  TimedEvent end_;
};

}  // namespace epistle
