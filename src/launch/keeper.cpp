#include "launch/keeper.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <exception>
#include <new>
#include <string_view>
#include <thread>

#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "launch/child.hpp"
#include "launch/signals.hpp"
#include "topology/process_tree.hpp"

namespace epistle {
namespace {

constexpr std::size_t kMaxTextBytes = 4096;
constexpr std::chrono::milliseconds kPollInterval{5};
// Not a name that "killall -9 epistle" or "pkill -9 epistle" finds together with the launcher.
constexpr const char* kProcessName = "rank-keeper";

/// What the keeper sends when it has finished, in one packet.
struct Message {
  ErrorCode error = ErrorCode::kOk;  ///< thrown by the body
  int exit_code = 0;
  std::array<char, kMaxTextBytes> text{};

  void set_text(std::string_view source) noexcept {
    std::copy_n(source.data(), std::min(source.size(), kMaxTextBytes - 1), text.data());
  }
};

[[noreturn]] void throw_system(std::string_view call) {
  const int error = errno;
  throw Error(ErrorCode::kSystem,
              fmt::format("{} failed while the ranks were started: {}; are the limits on processes and open files "
                          "(ulimit -u, ulimit -n) high enough?",
                          call, std::strerror(error)));
}

Message run_body(const std::function<KeeperResult(Orders&)>& body, Orders& orders) noexcept {
  Message message;
  try {
    const KeeperResult result = body(orders);
    message.exit_code = result.exit_code;
    message.set_text(result.complaint);
  } catch (const Error& error) {
    message.error = error.code();
    // The launcher's Error puts the code's name in front again.
    std::string_view text = error.what();
    const std::string_view code = to_string(error.code());
    if (text.starts_with(code)) text.remove_prefix(std::min(code.size() + 2, text.size()));
    message.set_text(text);
  } catch (const std::bad_alloc&) {
    message.error = ErrorCode::kOutOfMemory;
    message.set_text("the launcher of the ranks needs more memory than there is");
  } catch (const std::exception& error) {
    message.error = ErrorCode::kSystem;
    message.set_text(error.what());
  }
  return message;
}

[[noreturn]] void run_keeper(const std::function<KeeperResult(Orders&)>& body, UniqueFd channel) noexcept {
  // Wakes this process, should it be stopped, to notice that the launcher is gone.
  ::prctl(PR_SET_PDEATHSIG, SIGCONT);
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  ::prctl(PR_SET_NAME, kProcessName);
  // What the terminal and the shell send to the launcher's group reaches the ranks once, through the launcher.
  ::setpgid(0, 0);
  // Ignored SIGCHLD would make the kernel reap the ranks.
  ::signal(SIGCHLD, SIG_DFL);
  const int fd = channel.get();
  Orders orders(std::move(channel));
  const Message message = run_body(body, orders);
  ::send(fd, &message, sizeof(message), MSG_NOSIGNAL);
  ::_exit(0);
}

}  // namespace

std::optional<int> Orders::take() noexcept {
  int signal = 0;
  ssize_t num_received = 0;
  do {
    num_received = ::recv(channel_.get(), &signal, sizeof(signal), MSG_DONTWAIT);
  } while (num_received < 0 && errno == EINTR);
  if (num_received == static_cast<ssize_t>(sizeof(signal))) return signal;
  if (num_received >= 0 || (errno != EAGAIN && errno != EWOULDBLOCK)) launcher_gone_ = true;
  return std::nullopt;
}

Keeper::Keeper(const std::function<KeeperResult(Orders&)>& body) : others_(own_children()) {
  std::array<int, 2> fds{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds.data()) != 0) throw_system("socketpair");
  channel_ = UniqueFd(fds[0]);
  UniqueFd other_end(fds[1]);
  ::prctl(PR_GET_CHILD_SUBREAPER, &was_subreaper_);
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  pid_ = ::fork();
  if (pid_ == 0) {
    channel_.reset();
    run_keeper(body, std::move(other_end));
  }
  if (pid_ < 0) {
    const int error = errno;
    ::prctl(PR_SET_CHILD_SUBREAPER, was_subreaper_);
    errno = error;
    throw_system("fork");
  }
}

Keeper::~Keeper() {
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    reap(pid_);
    end_what_is_left();
  }
  ::prctl(PR_SET_CHILD_SUBREAPER, was_subreaper_);
}

KeeperResult Keeper::wait(SignalInbox& signals) {
  std::array<pollfd, 2> waits{};
  waits[0] = {.fd = signals.fd(), .events = POLLIN, .revents = 0};
  waits[1] = {.fd = channel_.get(), .events = POLLIN, .revents = 0};
  while (waits[1].revents == 0) {
    if (::poll(waits.data(), waits.size(), -1) < 0) {
      if (errno == EINTR) continue;
      throw Error(ErrorCode::kSystem, fmt::format("poll failed: {}", std::strerror(errno)));
    }
    while (const auto signal = signals.take()) {
      ::send(channel_.get(), &*signal, sizeof(*signal), MSG_NOSIGNAL | MSG_DONTWAIT);
      ::kill(pid_, SIGCONT);  // a stopped keeper would leave the order lying there
    }
  }
  Message message;
  const ssize_t num_received = ::recv(channel_.get(), &message, sizeof(message), MSG_DONTWAIT);
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  const pid_t pid = std::exchange(pid_, -1);
  if (num_received != static_cast<ssize_t>(sizeof(message))) {
    end_what_is_left();
    const ChildEnd end{.by_signal = WIFSIGNALED(status),
                       .value = WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status)};
    throw Error(ErrorCode::kSystem, fmt::format("the process that looks after the ranks (pid {}) {}; the ranks and all "
                                                "that they started were killed",
                                                pid, end.describe()));
  }
  if (message.error == ErrorCode::kOk) return {.exit_code = message.exit_code, .complaint = message.text.data()};
  end_what_is_left();
  throw Error(message.error, message.text.data());
}

void Keeper::end_what_is_left() noexcept {
  // Children of this process only: their numbers stay theirs until this process reaps them. Their own children come
  // here next.
  const auto deadline = std::chrono::steady_clock::now() + kEndTime;
  while (std::chrono::steady_clock::now() < deadline) {
    bool found = false;
    for (const pid_t pid : own_children()) {
      if (std::find(others_.begin(), others_.end(), pid) != others_.end()) continue;
      found = true;
      ::kill(pid, SIGKILL);
      ::waitpid(pid, nullptr, WNOHANG);
    }
    if (!found) return;
    std::this_thread::sleep_for(kPollInterval);
  }
}

}  // namespace epistle
