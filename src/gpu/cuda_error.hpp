// CUDA's return codes as epistle::Error, and the current device as a scope.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "epistle/error.hpp"

namespace epistle::cuda {

/// Throws unless `status` is cudaSuccess: kOutOfMemory, kUnsupported where device, driver or build cannot do it,
/// kSystem otherwise. `what` says what was tried. Takes the error back, so that it is not reported by a later launch as
/// well.
void check_cuda(cudaError_t status, const char* what);

/// The same for a function of driver_api().
void check_driver(CUresult status, const char* what);

/// For destructors: a failure becomes a warning.
void warn_cuda(cudaError_t status, const char* what) noexcept;
void warn_driver(CUresult status, const char* what) noexcept;

/// Makes `device` the calling thread's current device, and the former one again at the end. Where the former one was
/// not in use yet, that creates a CUDA context there: a thread does well to choose its device before it comes here.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  int device_;
};

}  // namespace epistle::cuda
