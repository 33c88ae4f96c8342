// Events of CUDA streams, with an owner.
#pragma once

#include <memory>

#include <cuda_runtime_api.h>

#include "gpu/cuda_error.hpp"

namespace epistle::cuda {

enum class EventKind : unsigned int {
  kOrder = cudaEventDisableTiming,  ///< knows nothing but order
  kTimed = cudaEventDefault,        ///< and when its stream came by
  /// Whoever waits for it sleeps, where the core is somebody else's.
  kSleeping = cudaEventDisableTiming | cudaEventBlockingSync,
};

/// Of the device that is the current one when it is made.
class Event {
 public:
  Event() = default;  ///< none
  explicit Event(EventKind kind) {
    cudaEvent_t event = nullptr;
    check_cuda(cudaEventCreateWithFlags(&event, static_cast<unsigned int>(kind)), "creating an event");
    event_.reset(event);
  }

  [[nodiscard]] bool exists() const noexcept { return event_ != nullptr; }
  [[nodiscard]] cudaEvent_t get() const noexcept { return event_.get(); }

  void record(cudaStream_t stream) const { check_cuda(cudaEventRecord(get(), stream), "recording an event"); }
  /// What is put on `stream` from now on waits for this one.
  void hold_back(cudaStream_t stream) const {
    check_cuda(cudaStreamWaitEvent(stream, get(), 0), "ordering work behind an event");
  }
  /// At once where nothing was recorded. `what` has failed where what was before it on its stream has.
  void wait(const char* what) const { check_cuda(cudaEventSynchronize(get()), what); }

 private:
  struct Destroy {
    void operator()(cudaEvent_t event) const noexcept { warn_cuda(cudaEventDestroy(event), "destroying an event"); }
  };
  std::unique_ptr<CUevent_st, Destroy> event_;
};

}  // namespace epistle::cuda
