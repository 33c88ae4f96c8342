// A control group of the kernel, version 1 or 2, with a limit on memory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>

#include <unistd.h>

#include "support/temp_dir.hpp"

namespace epistle::test {

/// Below the group of this process, so that its limits hold as well. Whoever enters must have ended when it goes.
class ControlGroup {
 public:
  explicit ControlGroup(std::int64_t limit_bytes) {
    const std::string name = "/epistle-test-" + std::to_string(::getpid());
    // Version 2 gives controllers only to groups without processes, as the root may be.
    for (const std::string& parent : {"/sys/fs/cgroup/memory" + own_path("memory"), "/sys/fs/cgroup" + own_path(""),
                                      std::string("/sys/fs/cgroup")}) {
      std::error_code error;
      if (!std::filesystem::create_directory(parent + name, error)) continue;
      folder_ = parent + name;
      is_version_2_ = std::filesystem::exists(folder_ + "/memory.max");
      if (write(is_version_2_ ? "memory.max" : "memory.limit_in_bytes", limit_bytes)) {
        // Swap would take what does not fit. Not every kernel counts it.
        (void)(is_version_2_ ? write("memory.swap.max", 0) : write("memory.memsw.limit_in_bytes", limit_bytes));
        return;
      }
      remove();
    }
  }
  ~ControlGroup() { remove(); }
  ControlGroup(const ControlGroup&) = delete;
  ControlGroup& operator=(const ControlGroup&) = delete;

  /// Why there is none; empty where there is.
  [[nodiscard]] std::string missing() const {
    return folder_.empty() ? "no control group with a limit on memory can be made here" : "";
  }
  /// A process enters by writing its number, or 0, into it.
  [[nodiscard]] std::string door() const { return folder_ + "/cgroup.procs"; }
  /// For the calling process and what it starts from now on.
  void enter() const {
    if (!write("cgroup.procs", 0)) throw std::runtime_error("cannot enter " + folder_);
  }

  /// Processes that the kernel has killed because the limit was reached.
  [[nodiscard]] std::int64_t num_kills() const {
    const std::string text = read_file(folder_ + (is_version_2_ ? "/memory.events" : "/memory.oom_control"));
    constexpr std::string_view kName = "oom_kill ";
    const std::size_t begin = text.find(kName);
    if (begin == std::string::npos) throw std::runtime_error("the kernel does not count what it kills");
    return std::stoll(text.substr(begin + kName.size()));
  }

 private:
  /// The path of this process's group in the hierarchy of `controller`; "" = version 2.
  static std::string own_path(std::string_view controller) {
    std::ifstream stream("/proc/self/cgroup");
    const std::string wanted = ":" + std::string(controller) + ":";
    for (std::string line; std::getline(stream, line);) {
      const std::size_t begin = line.find(wanted);
      if (begin == std::string::npos || begin != line.find(':')) continue;
      const std::string path = line.substr(begin + wanted.size());
      return path == "/" ? "" : path;
    }
    return {};
  }
  [[nodiscard]] bool write(const std::string& file, std::int64_t value) const {
    std::ofstream stream(folder_ + "/" + file);
    stream << value;
    return static_cast<bool>(stream.flush());
  }
  void remove() {
    if (!folder_.empty()) ::rmdir(folder_.c_str());
    folder_.clear();
  }

  std::string folder_;
  bool is_version_2_ = false;
};

}  // namespace epistle::test
