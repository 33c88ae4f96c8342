// Which of the processes below a launcher are there, and which are left.
#pragma once

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include <sys/types.h>

#include "cli/epistle_command.hpp"

namespace epistle::test {

/// A running process; a zombie that nobody has reaped yet counts as gone.
[[nodiscard]] inline bool is_alive(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  if (!std::getline(file, text)) return false;
  const std::size_t name_end = text.rfind(')');
  return name_end != std::string::npos && text.compare(name_end + 1, 2, " Z") != 0;
}

[[nodiscard]] inline bool ends_soon(pid_t pid) {
  constexpr std::chrono::seconds kLimit{10};
  const auto deadline = std::chrono::steady_clock::now() + kLimit;
  while (std::chrono::steady_clock::now() < deadline) {
    if (!is_alive(pid)) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return false;
}

/// The N of every line "pid N".
[[nodiscard]] inline std::vector<pid_t> pids_in(const std::string& text) {
  std::vector<pid_t> pids;
  for (const std::string& line : split_lines(text)) {
    if (line.starts_with("pid ")) pids.push_back(static_cast<pid_t>(std::atoi(line.c_str() + 4)));
  }
  return pids;
}

/// The processes whose parent is `parent`.
[[nodiscard]] inline std::vector<pid_t> children_of(pid_t parent) {
  std::vector<pid_t> children;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    std::ifstream file(entry.path() / "stat");
    std::string stat;
    if (!std::getline(file, stat)) continue;
    // "pid (name) state parent ..."; the name may hold anything.
    const std::size_t name_end = stat.rfind(')');
    if (name_end == std::string::npos || std::atoi(stat.c_str() + name_end + 4) != parent) continue;
    children.push_back(static_cast<pid_t>(std::stoi(name)));
  }
  return children;
}

/// The process between a launcher and its ranks; 0 where there is none.
[[nodiscard]] inline pid_t keeper_of(pid_t launcher) {
  const auto children = children_of(launcher);
  return children.empty() ? 0 : children.front();
}

}  // namespace epistle::test
