#include "dispatch/cuda/engine/device_buffers.hpp"

#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "core/complaint.hpp"
#include "core/log.hpp"
#include "dispatch/cuda/engine/buffer_carver.hpp"
#include "gpu/cuda_error.hpp"
#include "gpu/heap/memory_budget.hpp"
#include "gpu/stream.hpp"

namespace epistle::cuda {

void FreeOnDevice::operator()(std::byte* memory) const noexcept {
  if (allocator_ == nullptr) {
    warn_cuda(cudaFree(memory), "releasing device memory");
    return;
  }
  const Complaint complaint = attempt([&] {
    const DeviceGuard guard(device_);
    allocator_->free(memory, num_bytes_, device_, private_stream(device_));
  });
  if (complaint) log_warn(std::string("giving memory back to CudaOptions::allocator: ") + complaint->what());
}

DeviceSource::DeviceSource(int device, const DeviceAllocator& allocator) : device_(device) {
  if (allocator.allocate) allocator_ = std::make_shared<const DeviceAllocator>(allocator);
}

DeviceBuffer DeviceSource::take(std::int64_t num_bytes) const {
  const DeviceGuard guard(device_);
  DeviceBuffer buffer = allocator_ != nullptr ? ask_allocator(num_bytes) : allocate(num_bytes);
  cudaStream_t stream = private_stream(device_);
  check_cuda(cudaMemsetAsync(buffer.get(), 0, static_cast<std::size_t>(num_bytes), stream), "clearing device memory");
  check_cuda(cudaStreamSynchronize(stream), "clearing device memory");
  return buffer;
}

DeviceBuffer DeviceSource::allocate(std::int64_t num_bytes) const {
  check_device_memory(device_, num_bytes, "a dispatcher's own device memory");
  void* memory = nullptr;
  // Not from a memory pool: a pool gives memory back when somebody synchronises, and that waits for the device.
  check_cuda(cudaMalloc(&memory, static_cast<std::size_t>(num_bytes)), "allocating device memory");
  return DeviceBuffer(static_cast<std::byte*>(memory));
}

/// What is free on the device is not asked: an allocator may have more, or less.
DeviceBuffer DeviceSource::ask_allocator(std::int64_t num_bytes) const {
  void* memory = nullptr;
  const Complaint thrown = attempt([&] { memory = allocator_->allocate(num_bytes, device_, private_stream(device_)); });
  if (memory == nullptr) {
    throw Error(
        ErrorCode::kOutOfMemory,
        fmt::format("CudaOptions::allocator gave none of the {} bytes of GPU {} that it was asked for{}; give it "
                    "more, use fewer tokens or handles, or leave the allocator out",
                    num_bytes, device_, thrown ? fmt::format(" ({})", thrown->message()) : ""));
  }
  DeviceBuffer buffer(static_cast<std::byte*>(memory), {allocator_, device_, num_bytes});
  cudaPointerAttributes attributes{};
  check_cuda(cudaPointerGetAttributes(&attributes, memory), "asking where the memory of CudaOptions::allocator lies");
  const bool is_here = attributes.type == cudaMemoryTypeDevice && attributes.device == device_;
  if (is_here && reinterpret_cast<std::uintptr_t>(memory) % BufferCarver::kAlignment == 0) return buffer;
  throw Error(
      ErrorCode::kInvalidArgument,
      fmt::format("CudaOptions::allocator gave {}, and not memory of GPU {} at a multiple of {} bytes; have it "
                  "allocate on the device that it is given",
                  is_here ? fmt::format("the address {}", memory) : "other memory", device_, BufferCarver::kAlignment));
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
