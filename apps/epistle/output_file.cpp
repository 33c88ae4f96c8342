#include "output_file.hpp"

#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstring>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "group/shared_memory.hpp"
#include "output.hpp"

namespace epistle::cli {
namespace {

constexpr int kMaxLinks = 40;  // what the kernel follows, see path_resolution(7)
constexpr mode_t kNewFileMode = 0666;
constexpr mode_t kModeBits = 07777;

[[noreturn]] void throw_cannot_write(std::string_view target) {
  const int error = errno;
  throw Error(ErrorCode::kSystem,
              fmt::format("cannot write to {}: {}; check the path, its permissions and the free space", target,
                          error == EBADF ? "it is closed" : std::strerror(error)));
}

/// The N of /dev/fd/N and /proc/self/fd/N, or -1. Such a name is followed no further: the file behind it is open, and
/// what was written to it before has to stay.
int named_descriptor(const std::filesystem::path& path) {
  const std::string text = path.string();
  for (const std::string_view folder : {"/dev/fd/", "/proc/self/fd/"}) {
    if (!text.starts_with(folder)) continue;
    int fd = -1;
    const auto result = std::from_chars(text.data() + folder.size(), text.data() + text.size(), fd);
    if (result.ec == std::errc() && result.ptr == text.data() + text.size()) return fd;
  }
  return -1;
}

/// A file beside the target that is gone again unless it takes the target's place.
class TemporaryFile {
 public:
  TemporaryFile(const std::filesystem::path& folder, std::string_view target) {
    for (int attempt = 0; !fd_.valid(); ++attempt) {
      path_ = folder / fmt::format(".epistle-{}-{}.tmp", ::getpid(), attempt);
      fd_ = UniqueFd(::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, kNewFileMode));
      if (!fd_.valid() && errno != EEXIST) throw_cannot_write(target);
    }
  }
  ~TemporaryFile() {
    if (!path_.empty()) ::unlink(path_.c_str());
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  [[nodiscard]] int fd() const noexcept { return fd_.get(); }
  [[nodiscard]] bool rename_to(const std::filesystem::path& path) noexcept {
    if (::rename(path_.c_str(), path.c_str()) != 0) return false;
    path_.clear();
    return true;
  }

 private:
  std::filesystem::path path_;
  UniqueFd fd_;
};

}  // namespace

void write_all(int fd, std::string_view text, std::string_view target) {
  while (!text.empty()) {
    const ssize_t written = ::write(fd, text.data(), text.size());
    if (written >= 0) {
      text.remove_prefix(static_cast<std::size_t>(written));
    } else if (errno == EAGAIN) {
      pollfd wait{.fd = fd, .events = POLLOUT, .revents = 0};
      ::poll(&wait, 1, -1);
    } else if (errno != EINTR) {
      throw_cannot_write(target);
    }
  }
}

OutputFile::OutputFile(std::string target) : target_(std::move(target)), path_(target_) {
  if (target_ == kStdout) {
    target_ = "standard output";
    fd_ = STDOUT_FILENO;
    return;
  }
  std::error_code error;
  for (int num_links = 0; num_links < kMaxLinks; ++num_links) {
    fd_ = named_descriptor(path_);
    if (fd_ >= 0 || !std::filesystem::is_symlink(path_, error)) return;
    path_ = path_.parent_path() / std::filesystem::read_symlink(path_, error);
  }
}

std::filesystem::path OutputFile::folder() const {
  return path_.has_parent_path() ? path_.parent_path() : std::filesystem::path(".");
}

void OutputFile::check() const {
  if (fd_ >= 0) {
    const int flags = ::fcntl(fd_, F_GETFL);
    if (flags >= 0 && (flags & O_ACCMODE) == O_RDONLY) errno = EBADF;
    if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY) throw_cannot_write(target_);
    return;
  }
  std::error_code error;  // what does not exist has no status, and is no folder
  const std::filesystem::file_status status = std::filesystem::status(path_, error);
  if (status.type() == std::filesystem::file_type::none) {  // links that lead in a circle
    errno = error.value();
    throw_cannot_write(target_);
  }
  if (std::filesystem::is_directory(status)) {
    errno = EISDIR;
    throw_cannot_write(target_);
  }
  const bool exists = std::filesystem::exists(status);
  if (exists && ::access(path_.c_str(), W_OK) != 0) throw_cannot_write(target_);
  const bool is_replaced = !exists || std::filesystem::is_regular_file(status);
  if (is_replaced && ::access(folder().c_str(), W_OK | X_OK) != 0) throw_cannot_write(folder().string());
}

void OutputFile::write(std::string_view content) const {
  check();
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path_, error);
  if (fd_ >= 0) {
    write_all(fd_, content, target_);
  } else if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
    write_in_place(content);
  } else {
    replace(content);
  }
}

void OutputFile::write_in_place(std::string_view content) const {
  const UniqueFd file(::open(path_.c_str(), O_WRONLY | O_CLOEXEC | O_NOCTTY));
  if (!file.valid()) throw_cannot_write(target_);
  write_all(file.get(), content, target_);
}

void OutputFile::replace(std::string_view content) const {
  TemporaryFile file(folder(), target_);
  struct stat old {};
  if (::stat(path_.c_str(), &old) == 0) {
    // Who may read the old file may read the new one. Its owner can be kept by a privileged user only.
    [[maybe_unused]] const int kept = ::fchown(file.fd(), old.st_uid, old.st_gid);
    if (::fchmod(file.fd(), old.st_mode & kModeBits) != 0) throw_cannot_write(target_);
  }
  write_all(file.fd(), content, target_);
  // Before the name changes hands: a crash must not leave an empty file in place of the old one.
  if (::fsync(file.fd()) != 0) throw_cannot_write(target_);
  if (!file.rename_to(path_)) throw_cannot_write(target_);
}

}  // namespace epistle::cli
