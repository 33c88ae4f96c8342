// Holds the streams of all ranks back until a moment that all of them share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <cuda_runtime_api.h>

#include "epistle/group.hpp"

namespace epistle {

class StreamGate {
 public:
  /// Group and stream must outlive the gate.
  StreamGate(Group& group, cudaStream_t stream)
      : group_(group), stream_(stream), ready_ns_(static_cast<std::size_t>(group.size())) {}

  /// Collective. What is put on the stream from now on starts when all ranks have had the time to put `num_runs` steps
  /// on theirs, each of up to four launches.
  void hold(int num_runs);

 private:
  Group& group_;
  cudaStream_t stream_;
  std::vector<std::int64_t> ready_ns_;
};

}  // namespace epistle
