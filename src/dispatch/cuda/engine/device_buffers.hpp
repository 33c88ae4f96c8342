// Device and pinned host memory of a dispatcher, with owners. Device memory is taken and given back only while no
// kernel of a rank on the same GPU waits for this rank: either may wait for all work of the device. Pinned memory is
// kept for the next one who asks, so that giving it back waits for nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include <cuda_runtime_api.h>

namespace epistle::cuda {

struct FreeOnDevice {
  void operator()(std::byte* memory) const noexcept;
};
using DeviceBuffer = std::unique_ptr<std::byte, FreeOnDevice>;

/// Zero-filled memory of `device`, usable at once on any of its streams. Throws kOutOfMemory, with the numbers, and
/// without having taken anything; so does PinnedMemory.
[[nodiscard]] DeviceBuffer allocate_on(int device, std::int64_t num_bytes);

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

  [[nodiscard]] std::byte* get() const noexcept { return memory_; }

 private:
  std::int64_t num_bytes_ = 0;
  std::byte* memory_ = nullptr;
};

}  // namespace epistle::cuda
