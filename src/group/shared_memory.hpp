// Anonymous shared memory: one memfd per region, with a piece for every rank. It has no name, so nothing can be left
// behind: the kernel frees it with the last descriptor and mapping, also after SIGKILL. Address space is reserved for
// the largest size a region may ever need; memory is committed page by page, by the rank whose piece it is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "group/descriptor.hpp"

namespace epistle {

/// Creates an anonymous shared memory file of `num_bytes`, nothing of it committed, that nobody can shrink. Throws
/// kOutOfMemory where a limit stands against it, kSystem otherwise.
[[nodiscard]] UniqueFd create_shared_file(std::int64_t num_bytes);

/// Bytes of the file of a region. Throws kOutOfMemory where all pieces together are more than can be addressed.
[[nodiscard]] std::int64_t region_file_bytes(int num_ranks, std::int64_t reserved_bytes);

/// The ranks that have a piece in a region.
struct RegionPieces {
  int count = 1;
  /// By rank: which piece is its, -1 = none (a rank of another host). Null: the piece of its number.
  std::shared_ptr<const std::vector<int>> of_rank;

  [[nodiscard]] int piece_of(int rank) const noexcept {
    return of_rank ? (*of_rank)[static_cast<std::size_t>(rank)] : rank;
  }
};

/// A region mapped into this process: the pieces of its ranks, one behind the other.
class RegionMapping {
 public:
  /// Throws kSystem where `file` is not what create_shared_file makes for a region of this size (a truncated file would
  /// be a SIGBUS later), kOutOfMemory where it cannot be mapped.
  RegionMapping(UniqueFd file, RegionPieces pieces, std::int64_t reserved_bytes);
  ~RegionMapping();
  RegionMapping(const RegionMapping&) = delete;
  RegionMapping& operator=(const RegionMapping&) = delete;

  /// Of a rank that has a piece here.
  [[nodiscard]] std::byte* base(int rank) const noexcept { return base_ + file_offset(rank); }
  [[nodiscard]] bool has(int rank) const noexcept { return pieces_.piece_of(rank) >= 0; }
  [[nodiscard]] std::int64_t file_offset(int rank) const noexcept { return pieces_.piece_of(rank) * reserved_bytes_; }
  [[nodiscard]] int fd() const noexcept { return file_.get(); }
  [[nodiscard]] std::int64_t reserved_bytes() const noexcept { return reserved_bytes_; }
  [[nodiscard]] const RegionPieces& pieces() const noexcept { return pieces_; }

 private:
  UniqueFd file_;
  RegionPieces pieces_;
  std::int64_t reserved_bytes_;  ///< of one piece
  std::int64_t file_bytes_;
  std::byte* base_ = nullptr;
};

/// One rank's view of a region.
class SymmetricRegion {
 public:
  SymmetricRegion() = default;
  SymmetricRegion(std::shared_ptr<RegionMapping> mapping, int rank) noexcept
      : mapping_(std::move(mapping)), rank_(rank) {}

  /// Of a rank of this host.
  [[nodiscard]] std::byte* base(int rank) const noexcept { return mapping_->base(rank); }
  /// False for ranks of other hosts.
  [[nodiscard]] bool has(int rank) const noexcept { return mapping_->has(rank); }
  [[nodiscard]] std::byte* own() const noexcept { return mapping_->base(rank_); }
  [[nodiscard]] int fd() const noexcept { return mapping_->fd(); }
  /// The same region at other addresses. Throws kOutOfMemory, kSystem.
  [[nodiscard]] SymmetricRegion map_again() const;
  /// Makes the pieces of ranks [begin, end) unreachable at these addresses: who touches them gets SIGSEGV. Pieces must
  /// be whole pages. Throws kSystem.
  void hide(int begin, int end) const;
  /// The view of another rank of the same region.
  [[nodiscard]] SymmetricRegion as_rank(int rank) const noexcept { return {mapping_, rank}; }
  /// Keeps the region mapped.
  [[nodiscard]] std::shared_ptr<const void> share() const noexcept { return mapping_; }

  /// Commits [offset, offset + num_bytes) of this rank's piece, zero-filled where it was not committed before. Nobody
  /// may use these bytes yet. Throws kOutOfMemory; whether there is room is asked before (GroupImpl::ask_for_memory),
  /// because the kernel may rather kill a process than refuse a page.
  void commit(std::int64_t offset, std::int64_t num_bytes) const;

  /// Bytes of this rank's piece that the kernel holds.
  [[nodiscard]] std::int64_t resident_bytes() const;

 private:
  std::shared_ptr<RegionMapping> mapping_;
  int rank_ = 0;
};

}  // namespace epistle
