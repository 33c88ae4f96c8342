#include "gpu/heap/memory_budget.hpp"

#include <algorithm>
#include <limits>
#include <string>

#include <cuda_runtime_api.h>

#include <fmt/format.h>

#include "gpu/cuda_error.hpp"
#include "topology/memory.hpp"

namespace epistle::cuda {
namespace {

constexpr std::int64_t kMostBytes = std::numeric_limits<std::int64_t>::max();

std::int64_t add(std::int64_t a, std::int64_t b) { return a > kMostBytes - b ? kMostBytes : a + b; }

bool fits(std::int64_t needed_bytes, std::int64_t available_bytes, std::int64_t reserved_bytes) {
  return needed_bytes <= 0 || needed_bytes <= available_bytes - reserved_bytes;
}

std::string describe(std::int64_t needed_bytes) {
  return needed_bytes == kMostBytes ? std::string("2^63 or more") : std::to_string(needed_bytes);
}

}  // namespace

std::int64_t free_device_bytes(int device) {
  const DeviceGuard guard(device);
  std::size_t free_bytes = 0;
  std::size_t total_bytes = 0;
  check_cuda(cudaMemGetInfo(&free_bytes, &total_bytes), "asking for the free memory of the device");
  return static_cast<std::int64_t>(free_bytes);
}

std::optional<Error> find_shortage(std::span<const DeviceClaim> claims, int rank, std::string_view what) {
  for (std::size_t peer = 0; peer < claims.size(); ++peer) {
    std::int64_t needed_bytes = 0;
    std::int64_t available_bytes = claims[peer].available_bytes;
    int num_sharing = 0;
    for (const DeviceClaim& other : claims) {
      if (other.uuid != claims[peer].uuid) continue;
      ++num_sharing;
      needed_bytes = add(needed_bytes, std::max<std::int64_t>(other.needed_bytes, 0));
      available_bytes = std::min(available_bytes, other.available_bytes);
    }
    if (fits(needed_bytes, available_bytes, kReservedDeviceBytes)) continue;
    return Error(
        ErrorCode::kOutOfMemory,
        fmt::format("GPU {} of rank {} has {} bytes free, of which {} stay free, and {}{} bytes are needed for "
                    "{}; nothing was taken. Use fewer tokens, a smaller capacity, or a GPU with more free "
                    "memory",
                    claims[peer].device, peer, available_bytes, kReservedDeviceBytes,
                    num_sharing > 1 ? fmt::format("by its {} ranks ", num_sharing) : "", describe(needed_bytes), what),
        {.rank = rank, .peer_rank = static_cast<int>(peer), .phase = Phase::kCreate});
  }
  return std::nullopt;
}

void check_device_memory(int device, std::int64_t needed_bytes, std::string_view what) {
  const std::int64_t available_bytes = free_device_bytes(device);
  if (fits(needed_bytes, available_bytes, kReservedDeviceBytes)) return;
  throw Error(ErrorCode::kOutOfMemory,
              fmt::format("GPU {} has {} bytes free, of which {} stay free, and {} bytes are needed for {}; use fewer "
                          "tokens, a smaller capacity, or a GPU with more free memory",
                          device, available_bytes, kReservedDeviceBytes, describe(needed_bytes), what));
}

void check_host_memory(std::int64_t needed_bytes, std::string_view what) {
  const AvailableMemory available = available_memory();
  if (available.bytes < 0 || fits(needed_bytes, available.bytes, kReservedHostBytes)) return;
  throw Error(ErrorCode::kOutOfMemory,
              fmt::format("the host has {} of the {} bytes of {} available, of which {} stay free, and {} bytes are "
                          "needed for {}; use fewer tokens or ranks, or a machine or cgroup with more memory",
                          available.bytes, available.limit_bytes, available.owner(), kReservedHostBytes,
                          describe(needed_bytes), what));
}

}  // namespace epistle::cuda
