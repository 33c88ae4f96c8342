#include "group/descriptor.hpp"

#include <cerrno>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

namespace epistle {
namespace {

constexpr int kFirstOwnDescriptor = STDERR_FILENO + 1;

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

UniqueFd duplicate(int fd) noexcept { return UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, kFirstOwnDescriptor)); }

UniqueFd own_descriptor(int fd) noexcept {
  UniqueFd owned(fd);
  if (fd < 0 || fd >= kFirstOwnDescriptor) return owned;
  UniqueFd lifted = duplicate(fd);
  const int error = errno;
  owned.reset();
  errno = error;
  return lifted;
}

const char* descriptor_hint(int error) noexcept {
  switch (error) {
    case EMFILE:
      return "; raise the limit on open files (ulimit -n), or take fewer ranks";
    case ENFILE:
      return "; the machine has no descriptors left (fs.file-max)";
    case ETOOMANYREFS:
      return "; too many descriptors are on their way between this user's processes: raise the limit on open files "
             "(ulimit -n)";
    default:
      return "";
  }
}

}  // namespace epistle
