// What routing tables and traces may hold.
#pragma once

#include <cstdint>

namespace epistle {

/// Bounds the memory that goes with experts when somebody names absurd ones; more than a thousand times any published
/// model. Dispatchers take as many.
inline constexpr std::int64_t kMaxRoutedExperts = std::int64_t{1} << 20;

}  // namespace epistle
