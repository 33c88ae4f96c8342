#include "bounded_run.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstring>

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

extern char** environ;

namespace epistle::cli {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kMaxOutputBytes = std::size_t{1} << 20;
constexpr std::chrono::milliseconds kPollInterval{20};

[[noreturn]] void fail(const char* what, int error) {
  throw Error(ErrorCode::kSystem, fmt::format("{}: {}", what, std::strerror(error)));
}

/// A pipe whose ends are closed at the end.
class Pipe {
 public:
  Pipe() {
    if (::pipe2(ends_.data(), O_CLOEXEC) != 0) fail("no pipe can be made", errno);
  }
  ~Pipe() {
    close_end(0);
    close_end(1);
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;

  [[nodiscard]] int read_end() const noexcept { return ends_[0]; }
  [[nodiscard]] int write_end() const noexcept { return ends_[1]; }
  void close_end(std::size_t end) noexcept {
    if (ends_[end] >= 0) ::close(ends_[end]);
    ends_[end] = -1;
  }

  /// Takes what is there; false at the end of the file.
  bool drain(std::string& text) {
    std::array<char, 4096> bytes = {};
    const ssize_t count = ::read(ends_[0], bytes.data(), bytes.size());
    if (count < 0) return errno == EINTR || errno == EAGAIN;
    const std::size_t room = kMaxOutputBytes - std::min(text.size(), kMaxOutputBytes);
    text.append(bytes.data(), std::min(static_cast<std::size_t>(count), room));
    return count > 0;
  }

 private:
  std::array<int, 2> ends_ = {-1, -1};
};

constexpr std::array kEndings = {SIGHUP, SIGINT, SIGTERM};

/// The group of the process that runs; 0 = none.
volatile std::sig_atomic_t running_group = 0;

void end_group_and_self(int signal) {
  if (running_group > 0) ::kill(-static_cast<pid_t>(running_group), SIGKILL);
  ::signal(signal, SIG_DFL);
  ::raise(signal);
}

/// A signal that ends this command ends what it has started first: Ctrl-C does not reach another process group.
class GroupEndsWithUs {
 public:
  GroupEndsWithUs() {
    sigset_t endings;
    sigemptyset(&endings);
    for (std::size_t idx = 0; idx < kEndings.size(); ++idx) {
      sigaddset(&endings, kEndings[idx]);
      ::sigaction(kEndings[idx], nullptr, &before_[idx]);
      if (before_[idx].sa_handler != SIG_DFL) continue;  // ignored, as below nohup
      struct sigaction action = {};
      action.sa_handler = end_group_and_self;
      ::sigaction(kEndings[idx], &action, nullptr);
    }
    // Until the group is known.
    ::pthread_sigmask(SIG_BLOCK, &endings, &mask_);
  }
  ~GroupEndsWithUs() {
    running_group = 0;
    for (std::size_t idx = 0; idx < kEndings.size(); ++idx) ::sigaction(kEndings[idx], &before_[idx], nullptr);
    ::pthread_sigmask(SIG_SETMASK, &mask_, nullptr);
  }
  GroupEndsWithUs(const GroupEndsWithUs&) = delete;
  GroupEndsWithUs& operator=(const GroupEndsWithUs&) = delete;

  /// Of this thread, and of what it starts.
  [[nodiscard]] const sigset_t& mask() const noexcept { return mask_; }
  void is(pid_t group) noexcept {
    running_group = group;
    ::pthread_sigmask(SIG_SETMASK, &mask_, nullptr);
  }

 private:
  std::array<struct sigaction, kEndings.size()> before_ = {};
  sigset_t mask_ = {};
};

pid_t spawn(const std::vector<std::string>& command, const Pipe& out, const Pipe& err, const sigset_t& mask) {
  std::vector<char*> arguments;
  arguments.reserve(command.size() + 1);
  for (const std::string& argument : command) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_init(&actions);
  posix_spawnattr_init(&attributes);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, out.write_end(), STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, err.write_end(), STDERR_FILENO);
  // A group of its own, so that what it starts ends with it.
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
  posix_spawnattr_setsigmask(&attributes, &mask);
  posix_spawnattr_setpgroup(&attributes, 0);
  pid_t pid = -1;
  const int error = ::posix_spawnp(&pid, arguments[0], &actions, &attributes, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) fail(fmt::format("cannot start '{}'", command[0]).c_str(), error);
  return pid;
}

}  // namespace

std::string BoundedRun::describe() const {
  if (timed_out) return fmt::format("did not end within {} s", static_cast<double>(limit.count()) / 1000);
  if (signal != 0) return fmt::format("was ended by signal {} ({})", signal, ::strsignal(signal));
  return fmt::format("exited with code {}", exit_code);
}

BoundedRun run_bounded(const std::vector<std::string>& command, std::chrono::milliseconds limit) {
  BoundedRun run;
  run.limit = limit;
  Pipe out;
  Pipe err;
  GroupEndsWithUs ending;
  const pid_t pid = spawn(command, out, err, ending.mask());
  ending.is(pid);
  out.close_end(1);
  err.close_end(1);
  const Clock::time_point deadline = Clock::now() + limit;
  bool out_open = true;
  bool err_open = true;
  int status = 0;
  bool ended = false;
  while (!ended) {
    std::array<pollfd, 2> ends = {pollfd{out_open ? out.read_end() : -1, POLLIN, 0},
                                  pollfd{err_open ? err.read_end() : -1, POLLIN, 0}};
    ::poll(ends.data(), ends.size(), static_cast<int>(kPollInterval.count()));
    if (ends[0].revents != 0) out_open = out.drain(run.out);
    if (ends[1].revents != 0) err_open = err.drain(run.err);
    // While output comes, the end can wait: it is read whole before the process is reaped.
    if (ends[0].revents != 0 || ends[1].revents != 0) {
      if (Clock::now() < deadline) continue;
    }
    ended = ::waitpid(pid, &status, WNOHANG) == pid;
    if (ended || Clock::now() < deadline) continue;
    run.timed_out = true;
    ::kill(-pid, SIGKILL);
    ended = ::waitpid(pid, &status, 0) == pid || errno != EINTR;
  }
  // What it left running would keep the pipes open, and is not waited for.
  ::kill(-pid, SIGKILL);
  if (WIFSIGNALED(status)) run.signal = WTERMSIG(status);
  if (WIFEXITED(status)) run.exit_code = WEXITSTATUS(status);
  return run;
}

}  // namespace epistle::cli
