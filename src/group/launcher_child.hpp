// One rank's process: fork, exec, and how it ended.
#pragma once

#include <csignal>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <sys/types.h>

#include "group/shared_memory.hpp"

namespace epistle {

struct ChildSpec {
  std::string executable;
  std::vector<std::string> arguments;    ///< arguments[0] included
  std::vector<std::string> environment;  ///< "NAME=value"
  bool reads_stdin = false;              ///< otherwise /dev/null
  bool capture_output = false;           ///< stdout and stderr go to pipes
  sigset_t signal_mask{};                ///< of the new process
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

/// A running child that leads its own process group and dies with the thread that started it.
class Child {
 public:
  /// Returns once the program is executed. Throws kSystem where no process can be created, kUnsupported where the
  /// program cannot be executed.
  explicit Child(const ChildSpec& spec);
  /// Kills what still runs, and reaps it.
  ~Child();
  Child(Child&& other) noexcept;
  Child& operator=(Child&&) = delete;
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  [[nodiscard]] pid_t pid() const noexcept { return pid_; }
  /// Becomes readable when the process ends.
  [[nodiscard]] int pidfd() const noexcept { return pidfd_.get(); }
  [[nodiscard]] bool running() const noexcept { return running_; }
  /// The read ends of its pipes, once; not valid without capture_output.
  [[nodiscard]] UniqueFd take_stdout() noexcept { return std::move(stdout_); }
  [[nodiscard]] UniqueFd take_stderr() noexcept { return std::move(stderr_); }

  /// Sends `signal` to the process and those it started.
  void signal_group(int signal) const noexcept;

  /// Reaps the process where it has ended. `kill_rest` (asked once it has) also ends the processes it left behind.
  template <typename KillRest>
  [[nodiscard]] std::optional<ChildEnd> try_reap(KillRest&& kill_rest) {
    const std::optional<ChildEnd> end = peek_end();
    if (end) reap(kill_rest(*end));
    return end;
  }

 private:
  [[nodiscard]] std::optional<ChildEnd> peek_end() const;
  void reap(bool kill_rest) noexcept;

  pid_t pid_ = -1;
  bool running_ = false;
  UniqueFd pidfd_;
  UniqueFd stdout_;
  UniqueFd stderr_;
};

}  // namespace epistle
