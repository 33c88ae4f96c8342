// The clock that ranks compare: the same for all processes of a host.
#pragma once

#include <chrono>
#include <cstdint>

namespace epistle {

[[nodiscard]] inline std::int64_t steady_now_ns() noexcept {
  const auto since_boot = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(since_boot).count();
}

[[nodiscard]] inline double steady_now_us() noexcept {
  const auto since_boot = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::micro>(since_boot).count();
}

}  // namespace epistle
