#include "launch/child.hpp"

#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "launch/launcher.hpp"

namespace epistle {
namespace {

constexpr int kSignalExitBase = 128;  // how shells report a signal as an exit code

[[noreturn]] void throw_system(std::string_view call, int rank) {
  const int error = errno;
  throw Error(ErrorCode::kSystem,
              fmt::format("rank {} could not be started: {} failed: {}; are the limits on processes and open files "
                          "(ulimit -u, ulimit -n) high enough?",
                          rank, call, std::strerror(error)));
}

struct Pipe {
  UniqueFd read_end;
  UniqueFd write_end;
};

Pipe make_pipe(int rank) {
  std::array<int, 2> fds{};
  if (::pipe2(fds.data(), O_CLOEXEC) != 0) throw_system("pipe2", rank);
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

std::vector<char*> pointers_to(const std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  pointers.reserve(strings.size() + 1);
  // execve takes char* for historical reasons and does not write to the strings.
  for (const std::string& string : strings) pointers.push_back(const_cast<char*>(string.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

/// Everything the new process needs, made before the fork: after it, only async-signal-safe calls are allowed.
struct ExecPlan {
  const char* executable;
  char* const* arguments;
  char* const* environment;
  const sigset_t* signal_mask;
  const rlimit* open_files;
  pid_t parent_pid;
  int stdin_fd;   ///< -1 = as it is
  int stdout_fd;  ///< -1 = as it is
  int stderr_fd;  ///< -1 = as it is
  int report_fd;  ///< closed by a successful exec, gets errno otherwise
};

[[noreturn]] void execute(const ExecPlan& plan) noexcept {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  // The parent may have died before prctl; then no signal will come any more.
  if (::getppid() != plan.parent_pid) ::_exit(kExitCannotExecute);
  ::setpgid(0, 0);
  const bool redirected = (plan.stdin_fd < 0 || ::dup2(plan.stdin_fd, STDIN_FILENO) >= 0) &&
                          (plan.stdout_fd < 0 || ::dup2(plan.stdout_fd, STDOUT_FILENO) >= 0) &&
                          (plan.stderr_fd < 0 || ::dup2(plan.stderr_fd, STDERR_FILENO) >= 0);
  if (redirected && ::setrlimit(RLIMIT_NOFILE, plan.open_files) == 0) {
    ::pthread_sigmask(SIG_SETMASK, plan.signal_mask, nullptr);
    ::execve(plan.executable, plan.arguments, plan.environment);
  }
  const int error = errno;
  [[maybe_unused]] const ssize_t written = ::write(plan.report_fd, &error, sizeof(error));
  ::_exit(kExitCannotExecute);
}

}  // namespace

int ChildEnd::exit_code() const noexcept { return by_signal ? kSignalExitBase + value : value; }

std::string ChildEnd::describe() const {
  return by_signal ? fmt::format("was killed by signal {} ({})", value, ::strsignal(value))
                   : fmt::format("exited with code {}", value);
}

Child::Child(const ChildSpec& spec) {
  const std::vector<char*> arguments = pointers_to(spec.arguments);
  const std::vector<char*> environment = pointers_to(spec.environment);
  Pipe report = make_pipe(spec.rank);
  Pipe out;
  Pipe err;
  UniqueFd null_input;
  if (spec.capture_output) {
    out = make_pipe(spec.rank);
    err = make_pipe(spec.rank);
  }
  if (!spec.reads_stdin) {
    null_input = UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    if (!null_input.valid()) throw_system("open(/dev/null)", spec.rank);
  }
  const ExecPlan plan{.executable = spec.executable.c_str(),
                      .arguments = arguments.data(),
                      .environment = environment.data(),
                      .signal_mask = &spec.signal_mask,
                      .open_files = &spec.open_files,
                      .parent_pid = ::getpid(),
                      .stdin_fd = null_input.get(),
                      .stdout_fd = out.write_end.get(),
                      .stderr_fd = err.write_end.get(),
                      .report_fd = report.write_end.get()};
  pid_ = ::fork();
  if (pid_ < 0) throw_system("fork", spec.rank);
  if (pid_ == 0) execute(plan);
  running_ = true;
  report.write_end.reset();

  int error = 0;
  ssize_t num_read = 0;
  do {
    num_read = ::read(report.read_end.get(), &error, sizeof(error));
  } while (num_read < 0 && errno == EINTR);
  if (num_read == static_cast<ssize_t>(sizeof(error))) {
    reap_ended(false);
    throw Error(ErrorCode::kUnsupported,
                fmt::format("'{}' cannot be executed: {}; is it a program for this machine, or a script with a valid "
                            "first line?",
                            spec.executable, std::strerror(error)));
  }
  stdout_ = std::move(out.read_end);
  stderr_ = std::move(err.read_end);
}

void Child::signal_group(int signal) const noexcept {
  if (!running_) return;
  ::kill(-pid_, signal);
  // A rank that has moved into another group, as shells with job control do.
  if (::getpgid(pid_) != pid_) ::kill(pid_, signal);
}

void Child::reap_ended(bool kill_rest) noexcept {
  // Before waitpid, while the pid, and with it the group's number, cannot belong to anybody else.
  if (kill_rest) ::kill(-pid_, SIGKILL);
  reap(pid_);
  running_ = false;
}

ChildrenState look_at_children() {
  siginfo_t info{};
  int result = 0;
  do {
    result = ::waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT);
  } while (result != 0 && errno == EINTR);
  if (result != 0 && errno == ECHILD) return {};
  if (result != 0) throw Error(ErrorCode::kSystem, fmt::format("waitid failed: {}", std::strerror(errno)));
  if (info.si_pid == 0) return {.ended = std::nullopt, .any = true};
  const ChildEnd end{.by_signal = info.si_code != CLD_EXITED, .value = info.si_status};
  return {.ended = EndedChild{.pid = info.si_pid, .end = end}, .any = true};
}

void reap(pid_t pid) noexcept {
  while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
  }
}

}  // namespace epistle
