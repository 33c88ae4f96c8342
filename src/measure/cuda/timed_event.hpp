// An event of a CUDA stream that knows when the stream came by.
#pragma once

#include <cuda_runtime_api.h>

#include "gpu/cuda_error.hpp"
#include "gpu/event.hpp"

namespace epistle {

class TimedEvent : public cuda::Event {
 public:
  TimedEvent() : Event(cuda::EventKind::kTimed) {}

  /// From `begin` to this one. Waits for this one.
  [[nodiscard]] double us_since(const TimedEvent& begin) const {
    constexpr double kMicrosPerMilli = 1e3;
    float elapsed_ms = 0.0F;
    wait("waiting for what is timed");
    cuda::check_cuda(cudaEventElapsedTime(&elapsed_ms, begin.get(), get()), "read the time between events");
    return static_cast<double>(elapsed_ms) * kMicrosPerMilli;
  }
};

}  // namespace epistle
