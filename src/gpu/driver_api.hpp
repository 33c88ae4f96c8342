// The functions of the CUDA driver that the runtime has no counterpart for. They are looked up at run time, so programs
// with the CUDA device start on machines that have no driver.
#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>

namespace epistle::cuda {

struct DriverApi {
  PFN_cuGetErrorName_v6000 get_error_name = nullptr;
  PFN_cuGetErrorString_v6000 get_error_string = nullptr;
  PFN_cuDeviceGet_v2000 device_get = nullptr;
  PFN_cuDeviceGetAttribute_v2000 device_get_attribute = nullptr;
  PFN_cuMemGetAllocationGranularity_v10020 mem_get_allocation_granularity = nullptr;
  PFN_cuMemAddressReserve_v10020 mem_address_reserve = nullptr;
  PFN_cuMemAddressFree_v10020 mem_address_free = nullptr;
  PFN_cuMemCreate_v10020 mem_create = nullptr;
  PFN_cuMemRelease_v10020 mem_release = nullptr;
  PFN_cuMemMap_v10020 mem_map = nullptr;
  PFN_cuMemUnmap_v10020 mem_unmap = nullptr;
  PFN_cuMemSetAccess_v10020 mem_set_access = nullptr;
  PFN_cuMemExportToShareableHandle_v10020 mem_export_to_shareable_handle = nullptr;
  PFN_cuMemImportFromShareableHandle_v10020 mem_import_from_shareable_handle = nullptr;
};

/// Loaded at the first call. Thread-safe. Throws kUnsupported where there is no driver, or one that lacks a function; a
/// later call tries again.
[[nodiscard]] const DriverApi& driver_api();

/// From here on these functions are called. For tests, with no other thread running.
void replace_driver_api_for_testing(const DriverApi& api);

}  // namespace epistle::cuda
