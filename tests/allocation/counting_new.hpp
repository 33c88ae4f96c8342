// Counts the heap allocations of the whole process.
#pragma once

#include <cstdint>

namespace epistle::testing {

/// Calls of operator new so far, on any thread.
[[nodiscard]] std::int64_t num_allocations() noexcept;

}  // namespace epistle::testing
