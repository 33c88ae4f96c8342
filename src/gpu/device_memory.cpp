#include "gpu/device_memory.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <cuda_runtime_api.h>
#include <fcntl.h>

#include <fmt/format.h>

#include "gpu/cuda_error.hpp"
#include "gpu/driver_api.hpp"

namespace epistle::cuda {
namespace {

// What every GPU with virtual memory functions has; the unit of devices that lack them.
constexpr std::int64_t kDefaultGranularityBytes = std::int64_t{2} << 20;

CUdeviceptr to_device_address(const std::byte* address) { return reinterpret_cast<CUdeviceptr>(address); }

CUmemAllocationProp memory_on(int device, CUmemAllocationHandleType handle_type) {
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties.location.id = device;
  properties.requestedHandleTypes = handle_type;
  return properties;
}

bool has_attribute(CUdevice device, CUdevice_attribute attribute) {
  int value = 0;
  // A driver that does not know the attribute does not have the feature.
  return driver_api().device_get_attribute(&value, attribute, device) == CUDA_SUCCESS && value != 0;
}

}  // namespace

MemoryCapabilities memory_capabilities(int device) {
  CUdevice handle = 0;
  check_driver(driver_api().device_get(&handle, device), fmt::format("cuDeviceGet({})", device).c_str());
  return {.virtual_memory = has_attribute(handle, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED),
          .posix_fd = has_attribute(handle, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED),
          .fabric = has_attribute(handle, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED)};
}

std::int64_t mapping_granularity(int device) {
  const MemoryCapabilities capabilities = memory_capabilities(device);
  if (!capabilities.virtual_memory) return kDefaultGranularityBytes;
  std::size_t largest = 0;
  const auto ask = [&](CUmemAllocationHandleType handle_type) {
    const CUmemAllocationProp properties = memory_on(device, handle_type);
    std::size_t granularity = 0;
    const CUresult status =
        driver_api().mem_get_allocation_granularity(&granularity, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
    if (status == CUDA_SUCCESS) largest = std::max(largest, granularity);
    return status;
  };
  check_driver(ask(CU_MEM_HANDLE_TYPE_NONE), fmt::format("cuMemGetAllocationGranularity on device {}", device).c_str());
  // How memory is exported may ask for larger units. Where it cannot be, creating such memory says so.
  if (capabilities.posix_fd) (void)ask(CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
  if (capabilities.fabric) (void)ask(CU_MEM_HANDLE_TYPE_FABRIC);
  return static_cast<std::int64_t>(largest);
}

// ---- PhysicalMemory -------------------------------------------------------------------------------------------------

PhysicalMemory::PhysicalMemory(int device, std::int64_t num_bytes, CUmemAllocationHandleType handle_type)
    : num_bytes_(num_bytes) {
  const CUmemAllocationProp properties = memory_on(device, handle_type);
  check_driver(
      driver_api().mem_create(&handle_, static_cast<std::size_t>(num_bytes), &properties, 0),
      fmt::format("cuMemCreate of {} bytes on device {}{}", num_bytes, device,
                  handle_type == CU_MEM_HANDLE_TYPE_FABRIC ? " for fabric handles (is nvidia-imex configured?)" : "")
          .c_str());
}

PhysicalMemory PhysicalMemory::import_from(const UniqueFd& fd, std::int64_t num_bytes) {
  CUmemGenericAllocationHandle handle = 0;
  // The driver takes the descriptor's number in place of an address.
  void* const os_handle = reinterpret_cast<void*>(static_cast<std::uintptr_t>(fd.get()));
  check_driver(
      driver_api().mem_import_from_shareable_handle(&handle, os_handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
      "cuMemImportFromShareableHandle of a file descriptor");
  return {handle, num_bytes};
}

PhysicalMemory PhysicalMemory::import_from(CUmemFabricHandle handle, std::int64_t num_bytes) {
  CUmemGenericAllocationHandle imported = 0;
  check_driver(driver_api().mem_import_from_shareable_handle(&imported, &handle, CU_MEM_HANDLE_TYPE_FABRIC),
               "cuMemImportFromShareableHandle of a fabric handle");
  return {imported, num_bytes};
}

// NOLINTNEXTLINE(bugprone-exception-escape): the driver is loaded where there is memory of it
PhysicalMemory::~PhysicalMemory() {
  if (handle_ != 0) warn_driver(driver_api().mem_release(handle_), "cuMemRelease");
}

UniqueFd PhysicalMemory::export_fd() const {
  int fd = -1;
  check_driver(driver_api().mem_export_to_shareable_handle(&fd, handle_, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
               "cuMemExportToShareableHandle to a file descriptor");
  UniqueFd file(fd);
  // Not for the programs that this one starts.
  if (::fcntl(fd, F_SETFD, FD_CLOEXEC) != 0) {
    throw Error(ErrorCode::kSystem, fmt::format("fcntl of an exported descriptor failed: {}", std::strerror(errno)));
  }
  return file;
}

CUmemFabricHandle PhysicalMemory::export_fabric_handle() const {
  CUmemFabricHandle fabric_handle{};
  check_driver(driver_api().mem_export_to_shareable_handle(&fabric_handle, handle_, CU_MEM_HANDLE_TYPE_FABRIC, 0),
               "cuMemExportToShareableHandle to a fabric handle (is nvidia-imex configured?)");
  return fabric_handle;
}

// ---- MappedMemory ---------------------------------------------------------------------------------------------------

MappedMemory::MappedMemory(std::byte* address, const PhysicalMemory& memory, std::span<const int> devices)
    : address_(address), num_bytes_(memory.num_bytes()) {
  std::vector<CUmemAccessDesc> access;
  access.reserve(devices.size());
  for (const int device : devices) {
    CUmemAccessDesc entry{};
    entry.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    entry.location.id = device;
    entry.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    access.push_back(entry);
  }
  const auto size = static_cast<std::size_t>(num_bytes_);
  check_driver(driver_api().mem_map(to_device_address(address), size, 0, memory.handle(), 0),
               fmt::format("cuMemMap of {} bytes", num_bytes_).c_str());
  try {
    check_driver(driver_api().mem_set_access(to_device_address(address), size, access.data(), access.size()),
                 fmt::format("cuMemSetAccess to {} bytes for {} devices", num_bytes_, access.size()).c_str());
  } catch (...) {
    warn_driver(driver_api().mem_unmap(to_device_address(address), size), "cuMemUnmap");
    throw;
  }
}

// NOLINTNEXTLINE(bugprone-exception-escape): the driver is loaded where there is memory of it
MappedMemory::~MappedMemory() {
  if (address_ == nullptr) return;
  warn_driver(driver_api().mem_unmap(to_device_address(address_), static_cast<std::size_t>(num_bytes_)), "cuMemUnmap");
}

// ---- Pieces ---------------------------------------------------------------------------------------------------------

VirtualPiece::VirtualPiece(std::int64_t reserved_bytes) : reserved_bytes_(reserved_bytes) {
  CUdeviceptr address = 0;
  check_driver(driver_api().mem_address_reserve(&address, static_cast<std::size_t>(reserved_bytes), 0, 0, 0),
               fmt::format("cuMemAddressReserve of {} bytes", reserved_bytes).c_str());
  base_ = reinterpret_cast<std::byte*>(address);
}

// NOLINTNEXTLINE(bugprone-exception-escape): the driver is loaded where there is memory of it
VirtualPiece::~VirtualPiece() {
  mapped_.clear();  // addresses can be given back only once nothing is mapped there
  warn_driver(driver_api().mem_address_free(to_device_address(base_), static_cast<std::size_t>(reserved_bytes_)),
              "cuMemAddressFree");
}

void VirtualPiece::keep(MappedMemory memory) {
  resident_bytes_ += memory.num_bytes();
  mapped_.push_back(std::move(memory));
}

AllocatedPiece::AllocatedPiece(std::int64_t num_bytes) : num_bytes_(num_bytes) {
  void* address = nullptr;
  check_cuda(cudaMalloc(&address, static_cast<std::size_t>(num_bytes)),
             fmt::format("cudaMalloc of {} bytes", num_bytes).c_str());
  base_ = static_cast<std::byte*>(address);
}

AllocatedPiece::~AllocatedPiece() {
  if (!abandoned_) warn_cuda(cudaFree(base_), "cudaFree");
}

PieceRegistry& PieceRegistry::instance() {
  static PieceRegistry registry;
  return registry;
}

std::uint64_t PieceRegistry::add(const std::shared_ptr<DevicePiece>& piece) {
  const std::lock_guard lock(mutex_);
  pieces_.emplace(next_id_, piece);
  return next_id_++;
}

void PieceRegistry::remove(std::uint64_t id) {
  const std::lock_guard lock(mutex_);
  pieces_.erase(id);
}

std::shared_ptr<DevicePiece> PieceRegistry::find(std::uint64_t id) {
  const std::lock_guard lock(mutex_);
  const auto found = pieces_.find(id);
  return found == pieces_.end() ? nullptr : found->second.lock();
}

}  // namespace epistle::cuda
