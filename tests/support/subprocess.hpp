// Runs a program and captures what it writes and how it ends. A program that outlives its time is killed, so a test
// that hangs fails instead.
#pragma once

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support/temp_dir.hpp"

namespace epistle::test {

struct CommandResult {
  int exit_code = -1;  ///< -1 where a signal ended the program
  int signal = 0;      ///< 0 where it exited
  bool timed_out = false;
  std::string out;
  std::string err;

  /// All of it, for the message of a failed expectation.
  [[nodiscard]] std::string describe() const {
    return "exit code " + std::to_string(exit_code) + ", signal " + std::to_string(signal) +
           (timed_out ? ", timed out" : "") + "\nstdout:\n" + out + "\nstderr:\n" + err;
  }
};

struct CommandOptions {
  std::vector<std::pair<std::string, std::string>> environment = {};  ///< added to this process's own
  std::vector<std::string> unset = {};                                ///< removed from it
  std::string input = {};                                             ///< standard input
  std::chrono::milliseconds timeout{60'000};
};

/// A program that runs in a process group of its own. Output goes to files, so nothing has to be read while it runs.
class Subprocess {
 public:
  explicit Subprocess(const std::vector<std::string>& command, const CommandOptions& options = {})
      : deadline_(std::chrono::steady_clock::now() + options.timeout) {
    dir_.write("in", options.input);
    dir_.write("out", "");
    dir_.write("err", "");
    std::vector<char*> arguments;
    arguments.reserve(command.size() + 1);
    for (const std::string& argument : command) arguments.push_back(const_cast<char*>(argument.c_str()));
    arguments.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ < 0) throw std::runtime_error(std::string("fork failed: ") + std::strerror(errno));
    if (pid_ == 0) execute(arguments.data(), options);
  }
  ~Subprocess() {
    if (running_) {
      ::kill(-pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
  }
  Subprocess(const Subprocess&) = delete;
  Subprocess& operator=(const Subprocess&) = delete;

  [[nodiscard]] pid_t pid() const noexcept { return pid_; }
  [[nodiscard]] std::string out() const { return read_file(dir_.file("out")); }
  [[nodiscard]] std::string err() const { return read_file(dir_.file("err")); }

  void send_signal(int signal) const { ::kill(pid_, signal); }

  /// Waits until stdout contains `text`; false when the program's time is over or it ends without.
  [[nodiscard]] bool wait_for_output(const std::string& text) {
    while (true) {
      const bool ended = has_ended();
      if (out().find(text) != std::string::npos) return true;
      if (ended || std::chrono::steady_clock::now() > deadline_) return false;
      std::this_thread::sleep_for(kPollInterval);
    }
  }

  [[nodiscard]] CommandResult wait() {
    CommandResult result;
    while (!has_ended()) {
      if (!result.timed_out && std::chrono::steady_clock::now() > deadline_) {
        result.timed_out = true;
        ::kill(-pid_, SIGKILL);
      }
      std::this_thread::sleep_for(kPollInterval);
    }
    if (WIFEXITED(status_)) result.exit_code = WEXITSTATUS(status_);
    if (WIFSIGNALED(status_)) result.signal = WTERMSIG(status_);
    result.out = out();
    result.err = err();
    return result;
  }

 private:
  static constexpr std::chrono::milliseconds kPollInterval{2};
  static constexpr int kExitCannotExecute = 127;

  [[noreturn]] void execute(char* const* arguments, const CommandOptions& options) const {
    ::setpgid(0, 0);
    redirect(dir_.file("in"), O_RDONLY, STDIN_FILENO);
    redirect(dir_.file("out"), O_WRONLY | O_APPEND, STDOUT_FILENO);
    redirect(dir_.file("err"), O_WRONLY | O_APPEND, STDERR_FILENO);
    for (const std::string& name : options.unset) ::unsetenv(name.c_str());
    for (const auto& [name, value] : options.environment) ::setenv(name.c_str(), value.c_str(), 1);
    ::execvp(arguments[0], arguments);
    const std::string message = std::string("cannot execute ") + arguments[0] + ": " + std::strerror(errno) + "\n";
    [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, message.data(), message.size());
    ::_exit(kExitCannotExecute);
  }

  static void redirect(const std::string& path, int flags, int target) {
    const int fd = ::open(path.c_str(), flags);
    if (fd < 0 || ::dup2(fd, target) < 0) ::_exit(kExitCannotExecute);
    ::close(fd);
  }

  bool has_ended() {
    if (running_ && ::waitpid(pid_, &status_, WNOHANG) == pid_) running_ = false;
    return !running_;
  }

  TempDir dir_;
  std::chrono::steady_clock::time_point deadline_;
  pid_t pid_ = -1;
  bool running_ = true;
  int status_ = 0;
};

[[nodiscard]] inline CommandResult run_command(const std::vector<std::string>& command,
                                               const CommandOptions& options = {}) {
  return Subprocess(command, options).wait();
}

}  // namespace epistle::test
