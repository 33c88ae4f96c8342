#include "launch/signals.hpp"

#include <cerrno>
#include <cstring>

#include <sys/signalfd.h>
#include <unistd.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

namespace epistle {
namespace {

bool is_ignored(int signal) noexcept {
  struct sigaction action {};
  return ::sigaction(signal, nullptr, &action) == 0 && action.sa_handler == SIG_IGN;
}

}  // namespace

SignalInbox::SignalInbox(std::initializer_list<int> signals) {
  sigset_t taken;
  ::sigemptyset(&taken);
  for (const int signal : signals) {
    // A blocked signal reaches a signalfd even where it is ignored, so ignored ones are left out.
    if (!is_ignored(signal)) ::sigaddset(&taken, signal);
  }
  fd_ = UniqueFd(::signalfd(-1, &taken, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd_.valid()) {
    throw Error(ErrorCode::kSystem, fmt::format("signalfd failed: {}", std::strerror(errno)));
  }
  ::pthread_sigmask(SIG_BLOCK, &taken, &previous_mask_);
}

SignalInbox::~SignalInbox() {
  // A signal that nobody took any more was meant to end the job, which is over; it must not end this process late.
  while (take()) {
  }
  ::pthread_sigmask(SIG_SETMASK, &previous_mask_, nullptr);
}

std::optional<int> SignalInbox::take() noexcept {
  signalfd_siginfo info{};
  if (::read(fd_.get(), &info, sizeof(info)) != static_cast<ssize_t>(sizeof(info))) return std::nullopt;
  return static_cast<int>(info.ssi_signo);
}

}  // namespace epistle
