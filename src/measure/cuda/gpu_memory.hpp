// GPU memory and copies of a benchmark. Memory comes and goes only while no stream of any rank has work: cudaMalloc and
// cudaFree may wait for the whole GPU, and so for kernels that wait for a rank that is in them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>

#include "gpu/cuda_error.hpp"

namespace epistle {

class DeviceMemory {
 public:
  DeviceMemory() = default;
  /// On the current device. Nothing, and a null pointer, for 0 bytes.
  explicit DeviceMemory(std::int64_t num_bytes) : num_bytes_(num_bytes) {
    if (num_bytes > 0) {
      cuda::check_cuda(cudaMalloc(&data_, static_cast<std::size_t>(num_bytes)), "allocate memory for the benchmark");
    }
  }
  ~DeviceMemory() {
    if (data_ != nullptr) cuda::warn_cuda(cudaFree(data_), "free memory of the benchmark");
  }
  DeviceMemory(DeviceMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), num_bytes_(std::exchange(other.num_bytes_, 0)) {}
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(num_bytes_, other.num_bytes_);
    return *this;
  }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  template <typename Value = void>
  [[nodiscard]] Value* as() const noexcept {
    return static_cast<Value*>(data_);
  }
  [[nodiscard]] std::int64_t num_bytes() const noexcept { return num_bytes_; }

 private:
  void* data_ = nullptr;
  std::int64_t num_bytes_ = 0;
};

/// Stream-ordered copies between plain host memory and a GPU. The host memory must stay until the stream is waited for.
inline void copy_to_device(cudaStream_t stream, void* target, const void* source, std::int64_t num_bytes) {
  if (num_bytes == 0) return;
  cuda::check_cuda(cudaMemcpyAsync(target, source, static_cast<std::size_t>(num_bytes), cudaMemcpyHostToDevice, stream),
                   "copy inputs of the benchmark to the GPU");
}

inline void copy_to_host(cudaStream_t stream, void* target, const void* source, std::int64_t num_bytes) {
  if (num_bytes == 0) return;
  cuda::check_cuda(cudaMemcpyAsync(target, source, static_cast<std::size_t>(num_bytes), cudaMemcpyDeviceToHost, stream),
                   "copy outputs of the benchmark to the host");
}

inline void fill_device(cudaStream_t stream, void* target, std::byte value, std::int64_t num_bytes) {
  if (num_bytes == 0) return;
  cuda::check_cuda(cudaMemsetAsync(target, std::to_integer<int>(value), static_cast<std::size_t>(num_bytes), stream),
                   "overwrite outputs of the benchmark");
}

inline void wait_for_stream(cudaStream_t stream) {
  cuda::check_cuda(cudaStreamSynchronize(stream), "wait for the stream of the benchmark");
}

}  // namespace epistle
