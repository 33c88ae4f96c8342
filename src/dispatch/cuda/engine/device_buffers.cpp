#include "dispatch/cuda/engine/device_buffers.hpp"

#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "gpu/cuda_error.hpp"
#include "gpu/heap/memory_budget.hpp"
#include "gpu/private_stream.hpp"

namespace epistle::cuda {

void FreeOnDevice::operator()(std::byte* memory) const noexcept {
  warn_cuda(cudaFree(memory), "releasing device memory");
}

DeviceBuffer allocate_on(int device, std::int64_t num_bytes) {
  const DeviceGuard guard(device);
  check_device_memory(device, num_bytes, "a dispatcher's own device memory");
  void* memory = nullptr;
  const auto size = static_cast<std::size_t>(num_bytes);
  // Not from a memory pool: a pool gives memory back when somebody synchronises, and that waits for the device.
  check_cuda(cudaMalloc(&memory, size), "allocating device memory");
  DeviceBuffer buffer(static_cast<std::byte*>(memory));
  cudaStream_t stream = private_stream(device);
  check_cuda(cudaMemsetAsync(memory, 0, size, stream), "clearing device memory");
  check_cuda(cudaStreamSynchronize(stream), "clearing device memory");
  return buffer;
}

namespace {

/// Freeing pinned memory waits for the whole device, so it is kept for the next one who asks.
class PinnedPool {
 public:
  [[nodiscard]] std::byte* take(std::int64_t num_bytes) {
    const std::lock_guard lock(mutex_);
    const auto found = free_.find(num_bytes);
    if (found == free_.end()) return nullptr;
    std::byte* memory = found->second;
    free_.erase(found);
    return memory;
  }
  void give(std::int64_t num_bytes, std::byte* memory) {
    const std::lock_guard lock(mutex_);
    free_.emplace(num_bytes, memory);
  }

 private:
  std::mutex mutex_;
  std::multimap<std::int64_t, std::byte*> free_;
};

PinnedPool& pinned_pool() {
  // Never destroyed: the CUDA runtime may be gone before static destructors run.
  static auto* pool = new PinnedPool();
  return *pool;
}

}  // namespace

PinnedMemory::PinnedMemory(std::int64_t num_bytes) : num_bytes_(num_bytes), memory_(pinned_pool().take(num_bytes)) {
  const auto size = static_cast<std::size_t>(num_bytes);
  if (memory_ == nullptr) {
    check_host_memory(num_bytes, "pinned host memory");
    void* memory = nullptr;
    check_cuda(cudaHostAlloc(&memory, size, cudaHostAllocPortable | cudaHostAllocMapped),
               "allocating pinned host memory");
    memory_ = static_cast<std::byte*>(memory);
  }
  std::memset(memory_, 0, size);
}

PinnedMemory::~PinnedMemory() {
  if (memory_ != nullptr) pinned_pool().give(num_bytes_, memory_);
}

PinnedMemory::PinnedMemory(PinnedMemory&& other) noexcept
    : num_bytes_(other.num_bytes_), memory_(std::exchange(other.memory_, nullptr)) {}
PinnedMemory& PinnedMemory::operator=(PinnedMemory&& other) noexcept {
  std::swap(memory_, other.memory_);
  std::swap(num_bytes_, other.num_bytes_);
  return *this;
}

}  // namespace epistle::cuda
