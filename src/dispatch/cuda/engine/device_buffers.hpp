// Device and pinned host memory of a dispatcher, with owners. Device memory is taken and given back only while no
// kernel of a rank on the same GPU waits for this rank: either may wait for all work of the device. Pinned memory is
// kept for the next one who asks, so that giving it back waits for nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
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

/// Gives out aligned parts of one allocation; over null it only adds up sizes.
class BufferCarver {
 public:
  explicit BufferCarver(std::byte* memory) noexcept : memory_(memory) {}

  /// Points `part` at room for `count` values.
  template <typename Value>
  void take(Value*& part, std::int64_t count) noexcept {
    if (memory_ != nullptr) part = reinterpret_cast<Value*>(memory_ + num_bytes_);
    // What is too much for 64 bits stays so, and nobody allocates it.
    const std::int64_t room = kMostBytes - num_bytes_ - kAlignment;
    if (num_bytes_ == kMostBytes || count > room / static_cast<std::int64_t>(sizeof(Value))) {
      num_bytes_ = kMostBytes;
      return;
    }
    num_bytes_ += (count * static_cast<std::int64_t>(sizeof(Value)) + kAlignment - 1) / kAlignment * kAlignment;
  }
  [[nodiscard]] std::int64_t num_bytes() const noexcept { return num_bytes_; }

 private:
  static constexpr std::int64_t kAlignment = 256;
  static constexpr std::int64_t kMostBytes = std::numeric_limits<std::int64_t>::max();
  std::byte* memory_;
  std::int64_t num_bytes_ = 0;
};

}  // namespace epistle::cuda
