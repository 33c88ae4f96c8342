// An event of a CUDA stream that knows when the stream came by.
#pragma once

#include <cuda_runtime_api.h>

#include "gpu/cuda_error.hpp"

namespace epistle {

class TimedEvent {
 public:
  TimedEvent() { cuda::check_cuda(cudaEventCreate(&event_), "create an event"); }
  ~TimedEvent() { cuda::warn_cuda(cudaEventDestroy(event_), "destroy an event"); }
  TimedEvent(const TimedEvent&) = delete;
  TimedEvent& operator=(const TimedEvent&) = delete;

  void record(cudaStream_t stream) { cuda::check_cuda(cudaEventRecord(event_, stream), "record an event"); }

  /// What is put on `stream` from now on waits for this one.
  void hold_back(cudaStream_t stream) { cuda::check_cuda(cudaStreamWaitEvent(stream, event_, 0), "wait for an event"); }

  /// From `begin` to this one. Waits for this one.
  [[nodiscard]] double us_since(const TimedEvent& begin) const {
    constexpr double kMicrosPerMilli = 1e3;
    float elapsed_ms = 0.0F;
    cuda::check_cuda(cudaEventSynchronize(event_), "wait for an event");
    cuda::check_cuda(cudaEventElapsedTime(&elapsed_ms, begin.event_, event_), "read the time between events");
    return static_cast<double>(elapsed_ms) * kMicrosPerMilli;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace epistle
