// Anonymous shared memory: a memfd per rank and region. It has no name, so nothing can be left behind: the kernel frees
// it with the last descriptor and mapping, also after SIGKILL. Addresses are reserved for the largest size a region may
// ever need; memory is committed page by page with fallocate, so a lack of memory is an error and never a SIGBUS.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace epistle {

/// Owns a file descriptor.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) noexcept : fd_(fd) {}
  ~UniqueFd() { reset(); }
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept;
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;

  [[nodiscard]] int get() const noexcept { return fd_; }
  [[nodiscard]] bool valid() const noexcept { return fd_ >= 0; }
  [[nodiscard]] int release() noexcept;
  void reset() noexcept;

 private:
  int fd_ = -1;
};

/// Creates an anonymous shared memory file of `reserved_bytes`, nothing of it committed.
[[nodiscard]] UniqueFd create_shared_file(std::int64_t reserved_bytes);

/// One piece of memory per rank, all mapped into this process.
class RegionMapping {
 public:
  /// Maps `files[r]` for every rank. Keeps a descriptor only where `keep_fd[r]` is set.
  RegionMapping(std::vector<UniqueFd> files, const std::vector<bool>& keep_fd, std::int64_t reserved_bytes);
  ~RegionMapping();
  RegionMapping(const RegionMapping&) = delete;
  RegionMapping& operator=(const RegionMapping&) = delete;

  [[nodiscard]] std::byte* base(int rank) const noexcept { return bases_[static_cast<std::size_t>(rank)]; }
  [[nodiscard]] int fd(int rank) const noexcept { return files_[static_cast<std::size_t>(rank)].get(); }
  [[nodiscard]] std::int64_t reserved_bytes() const noexcept { return reserved_bytes_; }

 private:
  std::vector<UniqueFd> files_;
  std::vector<std::byte*> bases_;
  std::int64_t reserved_bytes_;
};

/// One rank's view of a region.
class SymmetricRegion {
 public:
  SymmetricRegion() = default;
  SymmetricRegion(std::shared_ptr<RegionMapping> mapping, int rank) noexcept
      : mapping_(std::move(mapping)), rank_(rank) {}

  [[nodiscard]] std::byte* base(int rank) const noexcept { return mapping_->base(rank); }
  [[nodiscard]] std::byte* own() const noexcept { return mapping_->base(rank_); }

  /// Commits [offset, offset + num_bytes) of this rank's piece, zero-filled where it was not committed before.
  /// Throws kOutOfMemory.
  void commit(std::int64_t offset, std::int64_t num_bytes) const;

  /// Bytes of this rank's piece that the kernel holds in memory.
  [[nodiscard]] std::int64_t resident_bytes() const;

 private:
  std::shared_ptr<RegionMapping> mapping_;
  int rank_ = 0;
};

}  // namespace epistle
