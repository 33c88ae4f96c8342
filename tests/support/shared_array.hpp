// Values that forked children write and their parent reads.
#pragma once

#include <cstddef>
#include <memory>
#include <stdexcept>
#include <type_traits>

#include <sys/mman.h>

namespace epistle::testing {

template <typename Value>
class SharedArray {
  static_assert(std::is_trivially_destructible_v<Value>);

 public:
  explicit SharedArray(std::size_t size) : size_(size) {
    void* const memory =
        ::mmap(nullptr, size * sizeof(Value), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("mmap failed");
    values_ = static_cast<Value*>(memory);
    std::uninitialized_value_construct_n(values_, size);
  }
  ~SharedArray() { ::munmap(values_, size_ * sizeof(Value)); }
  SharedArray(const SharedArray&) = delete;
  SharedArray& operator=(const SharedArray&) = delete;

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] Value& operator[](std::size_t idx) const noexcept { return values_[idx]; }

 private:
  Value* values_ = nullptr;
  std::size_t size_;
};

}  // namespace epistle::testing
