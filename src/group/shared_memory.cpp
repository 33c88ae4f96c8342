#include "group/shared_memory.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

namespace epistle {
namespace {

// What a process can address on x86-64 and, with 48-bit addresses, on arm64.
constexpr std::int64_t kMaxAddressBytes = std::int64_t{1} << 47;
constexpr int kNoShrinking = F_SEAL_SHRINK;

[[noreturn]] void throw_system(ErrorCode code, const std::string& what, int error) {
  throw Error(code, fmt::format("{}: {}{}", what, std::strerror(error), descriptor_hint(error)));
}

/// Without this the kernel ends the process with SIGXFSZ.
void check_file_limit(std::int64_t num_bytes) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return;
  if (static_cast<std::uint64_t>(num_bytes) <= limit.rlim_cur) return;
  throw Error(ErrorCode::kOutOfMemory,
              fmt::format("{} bytes of shared memory are more than the limit on the size of a file, {} bytes; raise it "
                          "(ulimit -f), or use fewer tokens or ranks",
                          num_bytes, limit.rlim_cur));
}

/// Gives every page of fresh, committed memory its content (zeros) now, rather than at some rank's first access.
void populate(std::byte* begin, std::int64_t num_bytes) noexcept {
#ifdef MADV_POPULATE_WRITE
  if (::madvise(begin, static_cast<std::size_t>(num_bytes), MADV_POPULATE_WRITE) == 0) return;
#endif
  // Linux before 5.14. The pages are there, so this cannot fail.
  const std::int64_t page_bytes = ::sysconf(_SC_PAGESIZE);
  for (std::int64_t offset = 0; offset < num_bytes; offset += page_bytes) {
    *reinterpret_cast<volatile std::byte*>(begin + offset) = std::byte{0};
  }
}

}  // namespace

UniqueFd create_shared_file(std::int64_t num_bytes) {
  check_file_limit(num_bytes);
  UniqueFd file = own_descriptor(::memfd_create("epistle", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!file.valid()) throw_system(ErrorCode::kSystem, "memfd_create failed", errno);
  if (retry_interrupted([&] { return ::ftruncate(file.get(), num_bytes); }) != 0) {
    throw_system(ErrorCode::kOutOfMemory, fmt::format("cannot reserve {} bytes of shared memory", num_bytes), errno);
  }
  if (::fcntl(file.get(), F_ADD_SEALS, kNoShrinking) != 0) {
    throw_system(ErrorCode::kSystem, "cannot seal shared memory", errno);
  }
  return file;
}

std::int64_t region_file_bytes(int num_ranks, std::int64_t reserved_bytes) {
  if (reserved_bytes >= 0 && reserved_bytes <= kMaxAddressBytes / num_ranks) return reserved_bytes * num_ranks;
  throw Error(ErrorCode::kOutOfMemory,
              fmt::format("the largest call would need {} bytes on each of {} ranks; a process can address {} bytes: "
                          "lower max_tokens, hidden or the ranks",
                          reserved_bytes, num_ranks, kMaxAddressBytes));
}

RegionMapping::RegionMapping(UniqueFd file, RegionPieces pieces, std::int64_t reserved_bytes)
    : file_(std::move(file)),
      pieces_(std::move(pieces)),
      reserved_bytes_(reserved_bytes),
      file_bytes_(region_file_bytes(pieces_.count, reserved_bytes)) {
  struct stat status {};
  if (::fstat(file_.get(), &status) != 0) throw_system(ErrorCode::kSystem, "fstat failed", errno);
  const int seals = ::fcntl(file_.get(), F_GET_SEALS);
  if (status.st_size != file_bytes_ || seals < 0 || (seals & kNoShrinking) == 0) {
    throw Error(ErrorCode::kSystem,
                fmt::format("the file that came for shared memory has {} bytes and seals {:#x}; {} bytes that nobody "
                            "can take away were expected",
                            status.st_size, seals, file_bytes_));
  }
  void* address = ::mmap(nullptr, static_cast<std::size_t>(file_bytes_), PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_NORESERVE, file_.get(), 0);
  if (address == MAP_FAILED) {
    throw_system(ErrorCode::kOutOfMemory,
                 fmt::format("cannot map {} bytes of address space ({} for each of {} ranks); lower max_tokens or the "
                             "ranks, or raise the limit of 'ulimit -v'",
                             file_bytes_, reserved_bytes, pieces_.count),
                 errno);
  }
  base_ = static_cast<std::byte*>(address);
}

RegionMapping::~RegionMapping() { ::munmap(base_, static_cast<std::size_t>(file_bytes_)); }

void SymmetricRegion::commit(std::int64_t offset, std::int64_t num_bytes) const {
  if (num_bytes == 0) return;
  const std::int64_t file_offset = mapping_->file_offset(rank_) + offset;
  if (retry_interrupted([&] { return ::fallocate(fd(), 0, file_offset, num_bytes); }) != 0) {
    const int error = errno;
    throw Error(
        ErrorCode::kOutOfMemory,
        fmt::format("cannot commit {} bytes of shared memory ({}); use fewer tokens, capacity sizing, or more memory",
                    num_bytes, std::strerror(error)),
        {.rank = rank_});
  }
  populate(own() + offset, num_bytes);
}

SymmetricRegion SymmetricRegion::map_again() const {
  UniqueFd file = duplicate(fd());
  if (!file.valid()) {
    const int error = errno;
    throw_system(ErrorCode::kSystem, fmt::format("cannot map shared memory again{}", descriptor_hint(error)), error);
  }
  return {std::make_shared<RegionMapping>(std::move(file), mapping_->pieces(), mapping_->reserved_bytes()), rank_};
}

void SymmetricRegion::hide(int begin, int end) const {
  const auto num_bytes = static_cast<std::size_t>((end - begin) * mapping_->reserved_bytes());
  if (num_bytes == 0 || ::mprotect(mapping_->base(begin), num_bytes, PROT_NONE) == 0) return;
  throw_system(ErrorCode::kSystem, fmt::format("cannot protect the pieces of ranks {} to {}", begin, end - 1), errno);
}

std::int64_t SymmetricRegion::resident_bytes() const {
  const std::int64_t begin = mapping_->file_offset(rank_);
  const std::int64_t end = begin + mapping_->reserved_bytes();
  std::int64_t num_bytes = 0;
  for (std::int64_t position = begin; position < end;) {
    const std::int64_t data = ::lseek(fd(), position, SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;  // nothing but a hole up to the end of the file
    const std::int64_t hole = data < 0 ? -1 : ::lseek(fd(), data, SEEK_HOLE);
    if (hole < 0) throw_system(ErrorCode::kSystem, "cannot look for committed shared memory", errno);
    num_bytes += std::max<std::int64_t>(0, std::min(hole, end) - data);
    position = hole;
  }
  return num_bytes;
}

}  // namespace epistle
