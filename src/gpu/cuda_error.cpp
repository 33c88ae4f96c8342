#include "gpu/cuda_error.hpp"

#include <exception>
#include <string>
#include <string_view>

#include <fmt/format.h>

#include "core/log.hpp"
#include "gpu/driver_api.hpp"

namespace epistle::cuda {
namespace {

ErrorCode to_error_code(cudaError_t status) {
  switch (status) {
    case cudaErrorMemoryAllocation:
      return ErrorCode::kOutOfMemory;
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorStubLibrary:
    case cudaErrorCompatNotSupportedOnDevice:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorNotSupported:
      return ErrorCode::kUnsupported;
    default:
      return ErrorCode::kSystem;
  }
}

ErrorCode to_error_code(CUresult status) {
  switch (status) {
    case CUDA_ERROR_OUT_OF_MEMORY:
      return ErrorCode::kOutOfMemory;
    case CUDA_ERROR_NO_DEVICE:
    case CUDA_ERROR_STUB_LIBRARY:
    case CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE:
    case CUDA_ERROR_SYSTEM_DRIVER_MISMATCH:
    case CUDA_ERROR_NOT_SUPPORTED:
      return ErrorCode::kUnsupported;
    default:
      return ErrorCode::kSystem;
  }
}

std::string_view advice_for(cudaError_t status) {
  switch (status) {
    case cudaErrorNoDevice:
      return "; no GPU is visible: look at nvidia-smi and CUDA_VISIBLE_DEVICES";
    case cudaErrorInsufficientDriver:
    case cudaErrorStubLibrary:
    case cudaErrorCompatNotSupportedOnDevice:
    case cudaErrorSystemDriverMismatch:
      return "; install an NVIDIA driver at least as new as this build's CUDA";
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
      return "; build with CMAKE_CUDA_ARCHITECTURES for this GPU";
    case cudaErrorMemoryAllocation:
      return "; use fewer tokens, capacity sizing, or a GPU with more free memory";
    default:
      return "";
  }
}

std::string describe(cudaError_t status, const char* what) {
  return fmt::format("{} failed: {} ({}){}", what, cudaGetErrorName(status), cudaGetErrorString(status),
                     advice_for(status));
}

std::string describe(CUresult status, const char* what) {
  const char* name = nullptr;
  const char* text = nullptr;
  // A status that this driver does not know leaves them null.
  (void)driver_api().get_error_name(status, &name);
  (void)driver_api().get_error_string(status, &text);
  return fmt::format("{} failed: {} ({}){}", what, name != nullptr ? name : "unknown error",
                     text != nullptr ? std::string(text) : std::to_string(static_cast<int>(status)),
                     status == CUDA_ERROR_OUT_OF_MEMORY ? advice_for(cudaErrorMemoryAllocation) : std::string_view());
}

template <typename Status>
void warn(Status status, const char* what) noexcept {
  try {
    log_warn(describe(status, what));
  } catch (const std::exception&) {
    log_warn("a CUDA call failed while memory was given back");
  }
}

}  // namespace

void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // resets it; the value is `status`
  throw Error(to_error_code(status), describe(status, what));
}

void check_driver(CUresult status, const char* what) {
  if (status != CUDA_SUCCESS) throw Error(to_error_code(status), describe(status, what));
}

void warn_cuda(cudaError_t status, const char* what) noexcept {
  // Objects that outlive main find the runtime gone, and their memory with it.
  if (status == cudaSuccess || status == cudaErrorCudartUnloading) return;
  (void)cudaGetLastError();  // resets it; the value is `status`
  warn(status, what);
}

void warn_driver(CUresult status, const char* what) noexcept {
  if (status != CUDA_SUCCESS && status != CUDA_ERROR_DEINITIALIZED) warn(status, what);
}

DeviceGuard::DeviceGuard(int device) : device_(device) {
  check_cuda(cudaGetDevice(&previous_), "cudaGetDevice");
  if (device_ != previous_) check_cuda(cudaSetDevice(device_), fmt::format("cudaSetDevice({})", device_).c_str());
}

DeviceGuard::~DeviceGuard() {
  if (device_ != previous_) warn_cuda(cudaSetDevice(previous_), "cudaSetDevice");
}

}  // namespace epistle::cuda
