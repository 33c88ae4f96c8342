// Device and pinned host memory of a dispatcher, with owners. Device memory is taken and given back only while no
// kernel of a rank on the same GPU waits for this rank: either may wait for all work of the device. Pinned memory is
// kept for the next one who asks, so that giving it back waits for nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include <cuda_runtime_api.h>

#include "epistle/config.hpp"

#include "dispatch/cuda/engine/buffer_carver.hpp"

namespace epistle::cuda {

class FreeOnDevice {
 public:
  FreeOnDevice() = default;  ///< of cudaMalloc
  FreeOnDevice(std::shared_ptr<const DeviceAllocator> allocator, int device, std::int64_t num_bytes) noexcept
      : allocator_(std::move(allocator)), device_(device), num_bytes_(num_bytes) {}
  void operator()(std::byte* memory) const noexcept;

 private:
  std::shared_ptr<const DeviceAllocator> allocator_;
  int device_ = 0;
  std::int64_t num_bytes_ = 0;
};
using DeviceBuffer = std::unique_ptr<std::byte, FreeOnDevice>;

/// Where device memory of a rank comes from: cudaMalloc, or the caller's allocator.
class DeviceSource {
 public:
  DeviceSource() = default;
  explicit DeviceSource(int device, const DeviceAllocator& allocator = {});

  /// Zero-filled, usable at once on any stream of the device. Throws kOutOfMemory, with the numbers, and without having
  /// taken anything; so does PinnedMemory.
  [[nodiscard]] DeviceBuffer take(std::int64_t num_bytes) const;
  /// The same for what `carve` takes of a BufferCarver.
  template <typename Carve>
  [[nodiscard]] DeviceBuffer carve(const Carve& carve) const {
    return carve_memory([this](std::int64_t num_bytes) { return take(num_bytes); }, carve);
  }

 private:
  [[nodiscard]] DeviceBuffer ask_allocator(std::int64_t num_bytes) const;
  [[nodiscard]] DeviceBuffer allocate(std::int64_t num_bytes) const;

  int device_ = 0;
  std::shared_ptr<const DeviceAllocator> allocator_;  ///< null: cudaMalloc
};

/// Pinned, zero-filled host memory that the device can read and write.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  explicit PinnedMemory(std::int64_t num_bytes);
  ~PinnedMemory();
  PinnedMemory(PinnedMemory&& other) noexcept;
  PinnedMemory& operator=(PinnedMemory&& other) noexcept;
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;

  /// For what `carve` takes of a BufferCarver.
  template <typename Carve>
  [[nodiscard]] static PinnedMemory carve(const Carve& carve) {
    return carve_memory([](std::int64_t num_bytes) { return PinnedMemory(num_bytes); }, carve);
  }

  [[nodiscard]] std::byte* get() const noexcept { return memory_; }

 private:
  std::int64_t num_bytes_ = 0;
  std::byte* memory_ = nullptr;
};

}  // namespace epistle::cuda
