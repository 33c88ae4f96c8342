#include "topology/process_tree.hpp"

#include <charconv>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <sstream>
#include <system_error>

#include <unistd.h>

#include <fmt/format.h>

#include "core/whole_file.hpp"

namespace epistle {
namespace {

struct ProcessStat {
  std::int64_t parent_pid = 0;
  std::uint64_t start_ticks = 0;
};

std::optional<ProcessStat> read_stat(std::int64_t pid) {
  const auto text = read_kernel_file(fmt::format("/proc/{}/stat", pid));
  if (!text) return std::nullopt;
  // The second field is the program's name in parentheses and may hold anything, so fields count from its end.
  const std::size_t name_end = text->rfind(')');
  if (name_end == std::string::npos) return std::nullopt;
  constexpr int kFirstField = 3;  // proc(5): state; 4 is the parent, 22 the start time
  constexpr int kParentField = 4;
  constexpr int kStartField = 22;
  std::istringstream fields(text->substr(name_end + 1));
  ProcessStat stat;
  std::string field;
  for (int number = kFirstField; fields >> field; ++number) {
    if (number == kParentField) stat.parent_pid = std::stoll(field);
    if (number == kStartField) {
      stat.start_ticks = std::stoull(field);
      return stat;
    }
  }
  return std::nullopt;
}

/// False where the environment cannot be read: a process of another user is a daemon of the launcher, no wrapper.
bool has_variable(std::int64_t pid, const std::string& name) {
  const auto environment = read_kernel_file(fmt::format("/proc/{}/environ", pid));
  if (!environment) return false;
  const std::string start = name + "=";
  return environment->starts_with(start) || environment->find('\0' + start) != std::string::npos;
}

}  // namespace

std::string common_ancestor_key(const std::string& rank_variable) {
  constexpr std::int64_t kInitPid = 1;
  std::int64_t pid = ::getppid();
  auto stat = read_stat(pid);
  while (pid > kInitPid && stat && has_variable(pid, rank_variable)) {
    pid = stat->parent_pid;
    stat = read_stat(pid);
  }
  return fmt::format("pid {} started {}", pid, stat ? stat->start_ticks : 0);
}

std::vector<pid_t> own_children() {
  std::vector<pid_t> children;
  std::error_code error;
  for (std::filesystem::directory_iterator entry("/proc", error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    pid_t pid = 0;
    const auto parsed = std::from_chars(name.data(), name.data() + name.size(), pid);
    if (parsed.ec != std::errc() || parsed.ptr != name.data() + name.size()) continue;
    const auto stat = read_stat(pid);
    if (stat && stat->parent_pid == ::getpid()) children.push_back(pid);
  }
  return children;
}

std::string process_name(pid_t pid) {
  std::string name = read_kernel_file(fmt::format("/proc/{}/comm", pid)).value_or("?\n");
  name.pop_back();
  return name;
}

}  // namespace epistle
