#include "group/shared_memory.hpp"

#include <cerrno>
#include <cstring>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

namespace epistle {
namespace {

// stat(2) counts blocks of this size, whatever the file system.
constexpr std::int64_t kStatBlockBytes = 512;

[[noreturn]] void throw_system(ErrorCode code, const std::string& what, int error) {
  throw Error(code, fmt::format("{}: {}", what, std::strerror(error)));
}

}  // namespace

UniqueFd& UniqueFd::operator=(UniqueFd&& other) noexcept {
  if (this != &other) {
    reset();
    fd_ = other.release();
  }
  return *this;
}

int UniqueFd::release() noexcept { return std::exchange(fd_, -1); }

void UniqueFd::reset() noexcept {
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

UniqueFd create_shared_file(std::int64_t reserved_bytes) {
  UniqueFd file(::memfd_create("epistle", MFD_CLOEXEC));
  if (!file.valid()) throw_system(ErrorCode::kSystem, "memfd_create failed", errno);
  if (::ftruncate(file.get(), reserved_bytes) != 0) {
    throw_system(ErrorCode::kOutOfMemory, fmt::format("cannot reserve {} bytes of shared memory", reserved_bytes),
                 errno);
  }
  return file;
}

RegionMapping::RegionMapping(std::vector<UniqueFd> files, const std::vector<bool>& keep_fd, std::int64_t reserved_bytes)
    : files_(std::move(files)), bases_(files_.size(), nullptr), reserved_bytes_(reserved_bytes) {
  for (std::size_t rank = 0; rank < files_.size(); ++rank) {
    void* address = ::mmap(nullptr, static_cast<std::size_t>(reserved_bytes), PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_NORESERVE, files_[rank].get(), 0);
    if (address == MAP_FAILED) {
      const int error = errno;
      for (std::size_t mapped = 0; mapped < rank; ++mapped) {
        ::munmap(bases_[mapped], static_cast<std::size_t>(reserved_bytes));
      }
      throw_system(
          ErrorCode::kOutOfMemory,
          fmt::format("cannot map {} bytes of address space for rank {} of {}; lower max_tokens or the ranks, or "
                      "raise the limit of 'ulimit -v'",
                      reserved_bytes, rank, files_.size()),
          error);
    }
    bases_[rank] = static_cast<std::byte*>(address);
    if (!keep_fd[rank]) files_[rank].reset();
  }
}

RegionMapping::~RegionMapping() {
  for (std::byte* base : bases_) ::munmap(base, static_cast<std::size_t>(reserved_bytes_));
}

void SymmetricRegion::commit(std::int64_t offset, std::int64_t num_bytes) const {
  if (num_bytes == 0) return;
  int error = 0;
  do {
    error = ::fallocate(mapping_->fd(rank_), 0, offset, num_bytes) == 0 ? 0 : errno;
  } while (error == EINTR);
  if (error != 0) {
    throw Error(
        ErrorCode::kOutOfMemory,
        fmt::format("cannot commit {} bytes of shared memory ({}); use fewer tokens, capacity sizing, or more memory",
                    num_bytes, std::strerror(error)),
        {.rank = rank_});
  }
}

std::int64_t SymmetricRegion::resident_bytes() const {
  struct stat status {};
  if (::fstat(mapping_->fd(rank_), &status) != 0) throw_system(ErrorCode::kSystem, "fstat failed", errno);
  return static_cast<std::int64_t>(status.st_blocks) * kStatBlockBytes;
}

}  // namespace epistle
