#include "gpu/driver_api.hpp"

#include <cuda_runtime_api.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

namespace epistle::cuda {
namespace {

// The versions of the signatures in DriverApi, as the names of their types have them.
constexpr unsigned int kCuda2 = 2000;
constexpr unsigned int kCuda6 = 6000;
constexpr unsigned int kCuda10 = 10020;

// cudaGetDriverEntryPointByVersion came with this runtime.
#define EPISTLE_CUDART_WITH_ENTRY_POINT_BY_VERSION 12050

cudaError_t find_entry_point(const char* name, void** address, [[maybe_unused]] unsigned int version,
                             cudaDriverEntryPointQueryResult* found) {
#if CUDART_VERSION >= EPISTLE_CUDART_WITH_ENTRY_POINT_BY_VERSION
  return cudaGetDriverEntryPointByVersion(name, address, version, cudaEnableDefault, found);
#else
  return cudaGetDriverEntryPoint(name, address, cudaEnableDefault, found);
#endif
}

[[noreturn]] void throw_unusable(cudaError_t status, const char* step) {
  (void)cudaGetLastError();  // resets it; the value is `status`
  throw Error(ErrorCode::kUnsupported,
              fmt::format("the CUDA driver cannot be used: {} ({}) in {}; look at nvidia-smi and CUDA_VISIBLE_DEVICES, "
                          "and install an NVIDIA driver at least as new as this build's CUDA {}.{}",
                          cudaGetErrorName(status), cudaGetErrorString(status), step, CUDART_VERSION / 1000,
                          CUDART_VERSION % 1000 / 10));
}

template <typename Function>
void load(Function& function, const char* name, unsigned int version) {
  void* address = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t status = find_entry_point(name, &address, version, &found);
  if (status != cudaSuccess) throw_unusable(status, name);
  if (found != cudaDriverEntryPointSuccess || address == nullptr) {
    throw Error(ErrorCode::kUnsupported,
                fmt::format("the CUDA driver lacks {} of CUDA {}.{}; install a newer NVIDIA driver", name,
                            version / 1000, version % 1000 / 10));
  }
  function = reinterpret_cast<Function>(address);
}

DriverApi load_driver_api() {
  // This also initialises the driver, which its functions expect.
  int num_devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&num_devices);
  if (status != cudaSuccess) throw_unusable(status, "cudaGetDeviceCount");
  DriverApi api;
  load(api.get_error_name, "cuGetErrorName", kCuda6);
  load(api.get_error_string, "cuGetErrorString", kCuda6);
  load(api.device_get, "cuDeviceGet", kCuda2);
  load(api.device_get_attribute, "cuDeviceGetAttribute", kCuda2);
  load(api.mem_get_allocation_granularity, "cuMemGetAllocationGranularity", kCuda10);
  load(api.mem_address_reserve, "cuMemAddressReserve", kCuda10);
  load(api.mem_address_free, "cuMemAddressFree", kCuda10);
  load(api.mem_create, "cuMemCreate", kCuda10);
  load(api.mem_release, "cuMemRelease", kCuda10);
  load(api.mem_map, "cuMemMap", kCuda10);
  load(api.mem_unmap, "cuMemUnmap", kCuda10);
  load(api.mem_set_access, "cuMemSetAccess", kCuda10);
  load(api.mem_export_to_shareable_handle, "cuMemExportToShareableHandle", kCuda10);
  load(api.mem_import_from_shareable_handle, "cuMemImportFromShareableHandle", kCuda10);
  return api;
}

DriverApi& own_driver_api() {
  static DriverApi api = load_driver_api();
  return api;
}

}  // namespace

const DriverApi& driver_api() { return own_driver_api(); }

void replace_driver_api_for_testing(const DriverApi& api) { own_driver_api() = api; }

}  // namespace epistle::cuda
