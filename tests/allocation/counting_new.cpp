#include "allocation/counting_new.hpp"

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace epistle::testing {
namespace {

std::atomic<std::int64_t> counter{0};

void* allocate(std::size_t num_bytes) {
  counter.fetch_add(1, std::memory_order_relaxed);
  void* const memory = std::malloc(num_bytes != 0 ? num_bytes : 1);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

void* allocate_aligned(std::size_t num_bytes, std::align_val_t alignment) {
  counter.fetch_add(1, std::memory_order_relaxed);
  const auto align = static_cast<std::size_t>(alignment);
  void* const memory = std::aligned_alloc(align, (num_bytes + align - 1) / align * align);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

std::int64_t num_allocations() noexcept { return counter.load(std::memory_order_relaxed); }

}  // namespace epistle::testing

// The array and nothrow forms of the standard library come back to these.
void* operator new(std::size_t num_bytes) { return epistle::testing::allocate(num_bytes); }
void* operator new(std::size_t num_bytes, std::align_val_t alignment) {
  return epistle::testing::allocate_aligned(num_bytes, alignment);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
