// Memory is asked for before it is taken: what is free on GPUs and on the host, and what is said where it is too
// little.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "epistle/error.hpp"

#include "gpu/device_uuid.hpp"

namespace epistle::cuda {

/// Left free on a GPU and on the host: both drivers and kernels need some of it.
inline constexpr std::int64_t kReservedDeviceBytes = std::int64_t{64} << 20;
inline constexpr std::int64_t kReservedHostBytes = std::int64_t{64} << 20;

/// What one rank is about to take from its GPU.
struct DeviceClaim {
  DeviceUuid uuid{};  ///< ranks with the same one share a GPU, and count together
  int device = 0;     ///< as the rank's own process counts
  std::int64_t needed_bytes = 0;
  std::int64_t available_bytes = 0;
};

[[nodiscard]] std::int64_t free_device_bytes(int device);

/// kOutOfMemory for the first GPU on which the claims do not fit; the same on all ranks but for the `rank` that asks.
/// `what` ends "... bytes for".
[[nodiscard]] std::optional<Error> find_shortage(std::span<const DeviceClaim> claims, int rank, std::string_view what);

/// Throw kOutOfMemory, with the numbers, where this much is not free. Zero or less needs nothing; a size whose
/// computation has overflowed must come as the largest number there is.
void check_device_memory(int device, std::int64_t needed_bytes, std::string_view what);
void check_host_memory(std::int64_t needed_bytes, std::string_view what);

}  // namespace epistle::cuda
