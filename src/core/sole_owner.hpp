// Whether somebody is the last one who holds a shared object.
#pragma once

#include <atomic>
#include <memory>

#include "core/sanitizers.hpp"

namespace epistle {

/// Whether nobody but `object` holds what it points at. True also means that all that former holders did to it, on any
/// thread, has happened before.
template <typename T>
[[nodiscard]] bool is_sole_owner(const std::shared_ptr<T>& object) noexcept {
  if (object.use_count() != 1) return false;
  if constexpr (kThreadSanitizer) {
    // It knows no fences, but it knows the counter of libstdc++, whose every increment acquires.
    const std::shared_ptr<T> again = object;
    return again != nullptr;
  } else {
    std::atomic_thread_fence(std::memory_order_acquire);  // pairs with the release of the last of them
    return true;
  }
}

}  // namespace epistle
