// Parts of one allocation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

namespace epistle::cuda {

/// Gives out aligned parts of one allocation; over null it only adds up sizes.
class BufferCarver {
 public:
  static constexpr std::int64_t kAlignment = 256;

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
  static constexpr std::int64_t kMostBytes = std::numeric_limits<std::int64_t>::max();
  std::byte* memory_;
  std::int64_t num_bytes_ = 0;
};

/// What `carve` takes of a BufferCarver.
template <typename Carve>
[[nodiscard]] std::int64_t carved_bytes(const Carve& carve) {
  BufferCarver sizes(nullptr);
  carve(sizes);
  return sizes.num_bytes();
}

/// Memory for that, which `allocate` gives for a number of bytes. `carve` is called twice: for sizes, and for places.
template <typename Allocate, typename Carve>
[[nodiscard]] auto carve_memory(const Allocate& allocate, const Carve& carve) {
  auto memory = allocate(carved_bytes(carve));
  BufferCarver places(memory.get());
  carve(places);
  return memory;
}

}  // namespace epistle::cuda
