#include "cuda_hosts/played_fabric.hpp"

#include <chrono>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "gpu/driver_api.hpp"
#include "group/descriptor.hpp"
#include "group/fd_channel.hpp"

namespace epistle::testing {
namespace {

constexpr std::uint64_t kPlayedHandle = 0x65706973746c6521;
constexpr std::chrono::seconds kLongestHandOut{10};

/// What a played fabric handle holds.
struct PlayedHandle {
  std::uint64_t magic = kPlayedHandle;
  std::int64_t process = 0;
  std::int64_t number = 0;
};
static_assert(sizeof(PlayedHandle) <= sizeof(CUmemFabricHandle));

struct HandOut {
  cuda::DriverApi driver;  ///< the real one
  std::mutex mutex;
  std::vector<UniqueFd> files;
  UniqueFd listener;
};

HandOut& hand_out() {
  static auto* const all = new HandOut();  // its thread runs to the process's end
  return *all;
}

Patience patience() { return {.deadline = std::chrono::steady_clock::now() + kLongestHandOut}; }

/// In the abstract namespace: gone with the process.
socklen_t address_of(std::int64_t process, sockaddr_un& address) {
  address = {};
  address.sun_family = AF_UNIX;
  const std::string name = "epistle-played-fabric-" + std::to_string(process);
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
}

void serve() {
  for (;;) {
    const UniqueFd socket(::accept4(hand_out().listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!socket.valid()) return;
    std::int64_t number = -1;
    if (receive_message(socket.get(), number, nullptr, patience()) != ChannelStatus::kOk) continue;
    const std::lock_guard lock(hand_out().mutex);
    const bool is_known = number >= 0 && number < std::ssize(hand_out().files);
    const int file = is_known ? hand_out().files[static_cast<std::size_t>(number)].get() : -1;
    (void)send_message(socket.get(), number, file, patience());
  }
}

bool is_fabric(const CUmemAllocationProp* properties) {
  return properties->requestedHandleTypes == CU_MEM_HANDLE_TYPE_FABRIC;
}

CUmemAllocationProp as_file(const CUmemAllocationProp* properties) {
  CUmemAllocationProp changed = *properties;
  if (is_fabric(properties)) changed.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  return changed;
}

CUresult played_attribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  if (attribute != CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED) {
    return hand_out().driver.device_get_attribute(value, attribute, device);
  }
  *value = 1;
  return CUDA_SUCCESS;
}

CUresult played_granularity(std::size_t* granularity, const CUmemAllocationProp* properties,
                            CUmemAllocationGranularity_flags option) {
  const CUmemAllocationProp changed = as_file(properties);
  return hand_out().driver.mem_get_allocation_granularity(granularity, &changed, option);
}

CUresult played_create(CUmemGenericAllocationHandle* handle, std::size_t num_bytes,
                       const CUmemAllocationProp* properties, unsigned long long flags) {
  const CUmemAllocationProp changed = as_file(properties);
  return hand_out().driver.mem_create(handle, num_bytes, &changed, flags);
}

CUresult played_export(void* shareable, CUmemGenericAllocationHandle handle, CUmemAllocationHandleType type,
                       unsigned long long flags) {
  if (type != CU_MEM_HANDLE_TYPE_FABRIC) {
    return hand_out().driver.mem_export_to_shareable_handle(shareable, handle, type, flags);
  }
  int file = -1;
  const CUresult status =
      hand_out().driver.mem_export_to_shareable_handle(&file, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, flags);
  if (status != CUDA_SUCCESS) return status;
  const std::lock_guard lock(hand_out().mutex);
  hand_out().files.emplace_back(file);
  const PlayedHandle played{.process = ::getpid(), .number = std::ssize(hand_out().files) - 1};
  std::memcpy(shareable, &played, sizeof(played));
  return CUDA_SUCCESS;
}

CUresult played_import(CUmemGenericAllocationHandle* handle, void* shareable, CUmemAllocationHandleType type) {
  if (type != CU_MEM_HANDLE_TYPE_FABRIC) {
    return hand_out().driver.mem_import_from_shareable_handle(handle, shareable, type);
  }
  PlayedHandle played;
  std::memcpy(&played, shareable, sizeof(played));
  if (played.magic != kPlayedHandle) return CUDA_ERROR_INVALID_VALUE;
  const UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address;
  const socklen_t length = address_of(played.process, address);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0)
    return CUDA_ERROR_NOT_PERMITTED;
  UniqueFd file;
  std::int64_t number = -1;
  if (send_message(socket.get(), played.number, -1, patience()) != ChannelStatus::kOk ||
      receive_message(socket.get(), number, &file, patience()) != ChannelStatus::kOk || !file.valid()) {
    return CUDA_ERROR_NOT_PERMITTED;
  }
  void* const os_handle = reinterpret_cast<void*>(static_cast<std::uintptr_t>(file.get()));
  return hand_out().driver.mem_import_from_shareable_handle(handle, os_handle,
                                                            CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
}

}  // namespace

void play_nvlink_fabric() {
  HandOut& all = hand_out();
  all.driver = cuda::driver_api();
  all.listener = UniqueFd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address;
  const socklen_t length = address_of(::getpid(), address);
  if (::bind(all.listener.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0 ||
      ::listen(all.listener.get(), SOMAXCONN) != 0) {
    throw std::runtime_error("the socket of a played fabric cannot be made");
  }
  std::thread(serve).detach();
  cuda::DriverApi played = all.driver;
  played.device_get_attribute = played_attribute;
  played.mem_get_allocation_granularity = played_granularity;
  played.mem_create = played_create;
  played.mem_export_to_shareable_handle = played_export;
  played.mem_import_from_shareable_handle = played_import;
  cuda::replace_driver_api_for_testing(played);
}

}  // namespace epistle::testing
