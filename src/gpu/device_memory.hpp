// GPU memory as the virtual memory functions of the driver know it: address space is reserved once, physical memory is
// created, given away as a handle, and mapped into it. And plain cudaMalloc memory for devices that lack these.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include <cuda.h>

#include "group/shared_memory.hpp"

namespace epistle::cuda {

/// What a device can do, as far as memory shared between GPUs is concerned.
struct MemoryCapabilities {
  bool virtual_memory = false;
  bool posix_fd = false;
  bool fabric = false;
};

[[nodiscard]] MemoryCapabilities memory_capabilities(int device);

/// Physical memory on a device. Lives on while it is mapped, in this process or another.
class PhysicalMemory {
 public:
  /// Creates it; `handle_type` is how it may be exported.
  PhysicalMemory(int device, std::int64_t num_bytes, CUmemAllocationHandleType handle_type);
  [[nodiscard]] static PhysicalMemory import_from(const UniqueFd& fd, std::int64_t num_bytes);
  [[nodiscard]] static PhysicalMemory import_from(CUmemFabricHandle handle, std::int64_t num_bytes);
  ~PhysicalMemory();
  PhysicalMemory(PhysicalMemory&& other) noexcept
      : handle_(std::exchange(other.handle_, 0)), num_bytes_(other.num_bytes_) {}
  PhysicalMemory& operator=(PhysicalMemory&&) = delete;
  PhysicalMemory(const PhysicalMemory&) = delete;
  PhysicalMemory& operator=(const PhysicalMemory&) = delete;

  [[nodiscard]] CUmemGenericAllocationHandle handle() const noexcept { return handle_; }
  [[nodiscard]] std::int64_t num_bytes() const noexcept { return num_bytes_; }

  [[nodiscard]] UniqueFd export_fd() const;
  [[nodiscard]] CUmemFabricHandle export_fabric_handle() const;

 private:
  PhysicalMemory(CUmemGenericAllocationHandle handle, std::int64_t num_bytes) noexcept
      : handle_(handle), num_bytes_(num_bytes) {}

  CUmemGenericAllocationHandle handle_ = 0;  ///< 0 = moved away
  std::int64_t num_bytes_ = 0;
};

/// Memory that is mapped into reserved address space and can be read and written there.
class MappedMemory {
 public:
  MappedMemory(std::byte* address, const PhysicalMemory& memory, std::span<const int> devices);
  ~MappedMemory();
  MappedMemory(MappedMemory&& other) noexcept
      : address_(std::exchange(other.address_, nullptr)), num_bytes_(other.num_bytes_) {}
  MappedMemory& operator=(MappedMemory&&) = delete;
  MappedMemory(const MappedMemory&) = delete;
  MappedMemory& operator=(const MappedMemory&) = delete;

  [[nodiscard]] std::byte* address() const noexcept { return address_; }
  [[nodiscard]] std::int64_t num_bytes() const noexcept { return num_bytes_; }

 private:
  std::byte* address_;  ///< null = moved away
  std::int64_t num_bytes_;
};

/// One rank's piece of a heap, as this process sees it.
class DevicePiece {
 public:
  virtual ~DevicePiece() = default;
  DevicePiece(const DevicePiece&) = delete;
  DevicePiece& operator=(const DevicePiece&) = delete;

  [[nodiscard]] std::byte* base() const noexcept { return base_; }
  /// Bytes of physical memory in it.
  [[nodiscard]] virtual std::int64_t resident_bytes() const noexcept = 0;

 protected:
  DevicePiece() = default;
  std::byte* base_ = nullptr;
};

/// Reserved address space and what has been mapped into it.
class VirtualPiece final : public DevicePiece {
 public:
  explicit VirtualPiece(std::int64_t reserved_bytes);
  ~VirtualPiece() override;
  VirtualPiece(const VirtualPiece&) = delete;
  VirtualPiece& operator=(const VirtualPiece&) = delete;

  [[nodiscard]] std::int64_t resident_bytes() const noexcept override { return resident_bytes_; }
  /// Keeps `memory`, which lies in this piece, until the piece goes.
  void keep(MappedMemory memory);

 private:
  std::int64_t reserved_bytes_;
  std::int64_t resident_bytes_ = 0;
  std::vector<MappedMemory> mapped_;
};

/// All of a piece from one cudaMalloc, on the current device.
class AllocatedPiece final : public DevicePiece {
 public:
  explicit AllocatedPiece(std::int64_t num_bytes);
  ~AllocatedPiece() override;
  AllocatedPiece(const AllocatedPiece&) = delete;
  AllocatedPiece& operator=(const AllocatedPiece&) = delete;

  [[nodiscard]] std::int64_t resident_bytes() const noexcept override { return num_bytes_; }
  /// Leaves the memory to the end of the process, because others may still use it.
  void abandon() noexcept { abandoned_ = true; }

 private:
  std::int64_t num_bytes_;
  bool abandoned_ = false;
};

/// Hands pieces from one rank of a thread group to the others by number. A number whose piece is gone finds nothing, so
/// a rank that failed meanwhile leaves no dangling pointer behind.
class PieceRegistry {
 public:
  [[nodiscard]] static PieceRegistry& instance();
  [[nodiscard]] std::uint64_t add(const std::shared_ptr<DevicePiece>& piece);
  void remove(std::uint64_t id);
  /// Null where it is gone.
  [[nodiscard]] std::shared_ptr<DevicePiece> find(std::uint64_t id);

 private:
  std::mutex mutex_;
  std::uint64_t next_id_ = 1;
  std::unordered_map<std::uint64_t, std::weak_ptr<DevicePiece>> pieces_;
};

/// Smallest unit that memory on `device` can be created and mapped in.
[[nodiscard]] std::int64_t mapping_granularity(int device);

}  // namespace epistle::cuda
