#include "gpu/device_uuid.hpp"

#include <cstring>

#include <fmt/format.h>

#include "gpu/cuda_error.hpp"

namespace epistle::cuda {

DeviceUuid uuid_of(int device) {
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, device), fmt::format("cudaGetDeviceProperties({})", device).c_str());
  DeviceUuid uuid{};
  static_assert(sizeof(uuid) == sizeof(properties.uuid.bytes));
  std::memcpy(uuid.data(), properties.uuid.bytes, uuid.size());
  return uuid;
}

}  // namespace epistle::cuda
