// One rank's process: fork, exec, and how it ended.
#pragma once

#include <chrono>
#include <csignal>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <sys/resource.h>
#include <sys/types.h>

#include "group/shared_memory.hpp"

namespace epistle {

/// What is killed may need this long to give back its memory; what stays longer is not going to end.
inline constexpr std::chrono::seconds kEndTime{30};

struct ChildSpec {
  int rank = 0;
  std::string executable;
  std::vector<std::string> arguments;    ///< arguments[0] included
  std::vector<std::string> environment;  ///< "NAME=value"
  bool reads_stdin = false;              ///< otherwise /dev/null
  bool capture_output = false;           ///< stdout and stderr go to pipes
  sigset_t signal_mask{};                ///< of the new process
  rlimit open_files{};                   ///< RLIMIT_NOFILE of the new process
};

/// How a process ended.
struct ChildEnd {
  bool by_signal = false;
  int value = 0;  ///< exit code or signal

  [[nodiscard]] bool failed() const noexcept { return by_signal || value != 0; }
  [[nodiscard]] int exit_code() const noexcept;
  /// "exited with code 3", "was killed by signal 9 (Killed)"
  [[nodiscard]] std::string describe() const;
};

/// A child of this process that has ended and waits to be reaped.
struct EndedChild {
  pid_t pid = 0;
  ChildEnd end;
};

/// What there is to know about this process's children without waiting.
struct ChildrenState {
  std::optional<EndedChild> ended;  ///< one that has ended
  bool any = false;                 ///< there are children, ended ones included
};

/// Throws kSystem.
[[nodiscard]] ChildrenState look_at_children();

/// Reaps a child that has ended.
void reap(pid_t pid) noexcept;

/// A rank's process: a child that leads its own process group and dies with the thread that started it. Whoever starts
/// it also reaps it.
class Child {
 public:
  /// Returns once the program is executed. Throws kSystem where no process can be created, kUnsupported where the
  /// program cannot be executed; then there is no process.
  explicit Child(const ChildSpec& spec);

  [[nodiscard]] pid_t pid() const noexcept { return pid_; }
  [[nodiscard]] bool running() const noexcept { return running_; }
  /// The read ends of its pipes, once; not valid without capture_output.
  [[nodiscard]] UniqueFd take_stdout() noexcept { return std::move(stdout_); }
  [[nodiscard]] UniqueFd take_stderr() noexcept { return std::move(stderr_); }

  /// Sends `signal` to the process and its group.
  void signal_group(int signal) const noexcept;

  /// To be called where it has ended: reaps it, and with `kill_rest` kills what is left of its group.
  void reap_ended(bool kill_rest) noexcept;

 private:
  pid_t pid_ = -1;
  bool running_ = false;
  UniqueFd stdout_;
  UniqueFd stderr_;
};

}  // namespace epistle
