#include "group/process_id.hpp"

#include <array>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <optional>
#include <string_view>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

namespace epistle {
namespace {

struct ProcessStat {
  char state = '?';
  std::uint64_t start_time = 0;
};

/// From /proc/PID/stat, whose second field, the name in parentheses, may hold blanks and parentheses itself.
std::optional<ProcessStat> read_stat(std::int64_t pid) noexcept {
  constexpr int kFieldsBehindState = 19;  // up to the start time, field 22 of proc(5)
  std::array<char, 64> path{};
  std::snprintf(path.data(), path.size(), "/proc/%lld/stat", static_cast<long long>(pid));
  const UniqueFd file = own_descriptor(::open(path.data(), O_RDONLY | O_CLOEXEC));
  std::array<char, 1024> buffer{};
  const ssize_t size = file.valid() ? ::read(file.get(), buffer.data(), buffer.size()) : -1;
  if (size <= 0) return std::nullopt;
  std::string_view text(buffer.data(), static_cast<std::size_t>(size));
  const std::size_t name_end = text.rfind(") ");
  if (name_end == std::string_view::npos || name_end + 2 >= text.size()) return std::nullopt;
  text.remove_prefix(name_end + 2);
  ProcessStat stat;
  stat.state = text.front();
  for (int field = 0; field < kFieldsBehindState; ++field) {
    const std::size_t blank = text.find(' ');
    if (blank == std::string_view::npos) return std::nullopt;
    text.remove_prefix(blank + 1);
  }
  std::from_chars(text.data(), text.data() + text.size(), stat.start_time);
  return stat;
}

std::uint64_t own_pid_namespace() noexcept {
  struct stat status {};
  return ::stat("/proc/self/ns/pid", &status) == 0 ? static_cast<std::uint64_t>(status.st_ino) : 0;
}

}  // namespace

ProcessId own_process_id() noexcept {
  const auto stat = read_stat(::getpid());
  return {::getpid(), own_pid_namespace(), stat ? stat->start_time : 0};
}

UniqueFd fetch_descriptor(const ProcessId& process, int fd) {
  const std::string path = fmt::format("/proc/{}/fd/{}", process.pid, fd);
  UniqueFd file = own_descriptor(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (file.valid()) return file;
  const int error = errno;
  throw Error(
      ErrorCode::kSystem,
      fmt::format("cannot open {}: {}{}; ranks that go on without others need /proc of one PID namespace, and to "
                  "be processes of one user",
                  path, std::strerror(error), descriptor_hint(error)));
}

bool is_running(const ProcessId& process) noexcept {
  if (process.pid_namespace == 0 || process.pid_namespace != own_pid_namespace()) return false;
  const auto stat = read_stat(process.pid);
  return stat && stat->state != 'Z' && stat->state != 'X' && stat->start_time == process.start_time;
}

}  // namespace epistle
