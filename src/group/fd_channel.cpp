#include "group/fd_channel.hpp"

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <string_view>
#include <thread>

#include <poll.h>
#include <sys/socket.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

namespace epistle {
namespace {

using Clock = std::chrono::steady_clock;

// How often a waiting rank asks whether there is still hope.
constexpr std::chrono::milliseconds kLookInterval{10};
// Between two tries at what passes with time: buffers, and descriptors that are on their way.
constexpr std::chrono::milliseconds kRetryInterval{1};

// Of receiving once more when there is no more patience; a signal may spoil some.
constexpr int kMaxLateTries = 16;

bool is_disconnect(int error) noexcept { return error == EPIPE || error == ECONNRESET || error == ENOTCONN; }
bool is_not_ready(int error) noexcept { return error == EAGAIN || error == EWOULDBLOCK; }
/// ETOOMANYREFS: the receivers have not taken what was sent before.
bool passes_with_time(int error) noexcept { return error == ETOOMANYREFS || error == ENOBUFS || error == ENOMEM; }

[[noreturn]] void throw_system(std::string_view call, int error) {
  throw Error(ErrorCode::kSystem, fmt::format("{} failed: {}{}", call, std::strerror(error), descriptor_hint(error)));
}

ChannelStatus look_at(const Patience& patience) {
  if (patience.is_hopeless && patience.is_hopeless()) return ChannelStatus::kGivenUp;
  return Clock::now() < patience.deadline ? ChannelStatus::kOk : ChannelStatus::kTimedOut;
}

/// Waits until `socket` is ready for `events`.
ChannelStatus wait_ready(int socket, short events, const Patience& patience) {
  for (;;) {
    pollfd entry{socket, events, 0};
    const Deadline next_look =
        patience.is_hopeless ? std::min(patience.deadline, Clock::now() + kLookInterval) : patience.deadline;
    const int num_ready = ::poll(&entry, 1, remaining_ms(next_look));
    if (num_ready > 0) return ChannelStatus::kOk;
    if (num_ready < 0 && errno != EINTR) throw_system("poll", errno);
    if (const ChannelStatus status = look_at(patience); status != ChannelStatus::kOk) return status;
  }
}

}  // namespace

int remaining_ms(Deadline deadline) noexcept {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, INT_MAX));
}

ChannelStatus send_message(int socket, const void* data, std::size_t num_bytes, int fd, const Patience& patience) {
  iovec part{const_cast<void*>(data), num_bytes};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  if (fd >= 0) {
    header.msg_control = control;
    header.msg_controllen = sizeof(control);
    cmsghdr* attached = CMSG_FIRSTHDR(&header);
    attached->cmsg_level = SOL_SOCKET;
    attached->cmsg_type = SCM_RIGHTS;
    attached->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(attached), &fd, sizeof(int));
  }
  for (;;) {
    // SOCK_SEQPACKET: a message goes whole or not at all.
    const ssize_t sent = ::sendmsg(socket, &header, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent == static_cast<ssize_t>(num_bytes)) return ChannelStatus::kOk;
    const int error = errno;
    if (sent < 0 && is_disconnect(error)) return ChannelStatus::kClosed;
    if (sent < 0 && is_not_ready(error)) {
      if (const auto status = wait_ready(socket, POLLOUT, patience); status != ChannelStatus::kOk) return status;
    } else if (sent < 0 && passes_with_time(error)) {
      if (look_at(patience) != ChannelStatus::kOk) throw_system("sendmsg", error);
      std::this_thread::sleep_for(kRetryInterval);
      continue;
    } else if (sent >= 0 || error != EINTR) {
      throw_system("sendmsg", sent < 0 ? error : EMSGSIZE);
    }
    if (const auto status = look_at(patience); status != ChannelStatus::kOk) return status;
  }
}

ChannelStatus receive_now(int socket, void* data, std::size_t num_bytes, UniqueFd* fd) {
  iovec part{data, num_bytes};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  bool was_reset = false;
  for (;;) {
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof(control);
    const ssize_t received = ::recvmsg(socket, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (received < 0) {
      const int error = errno;
      if (error == EINTR || is_not_ready(error)) return ChannelStatus::kNothing;
      // The other end closed without reading all it was sent. That is reported once, before what it had sent itself.
      if (error == ECONNRESET && !was_reset) {
        was_reset = true;
        continue;
      }
      if (is_disconnect(error)) return ChannelStatus::kClosed;
      throw_system("recvmsg", error);
    }
    UniqueFd incoming;
    const cmsghdr* attached = CMSG_FIRSTHDR(&header);
    if (attached != nullptr && attached->cmsg_level == SOL_SOCKET && attached->cmsg_type == SCM_RIGHTS) {
      int number = -1;
      std::memcpy(&number, CMSG_DATA(attached), sizeof(int));
      incoming = own_descriptor(number);
      if (!incoming.valid()) throw_system("taking a descriptor", errno);
    }
    if (received == 0) return ChannelStatus::kClosed;
    const bool truncated = (header.msg_flags & MSG_CTRUNC) != 0;
    if (received != static_cast<ssize_t>(num_bytes) || (header.msg_flags & MSG_TRUNC) != 0) {
      return ChannelStatus::kMalformed;
    }
    // The kernel drops descriptors for which the receiver has no number left.
    if (truncated && !incoming.valid() && fd != nullptr) throw_system("taking a descriptor", EMFILE);
    if (fd != nullptr) *fd = std::move(incoming);
    return ChannelStatus::kOk;
  }
}

ChannelStatus receive_message(int socket, void* data, std::size_t num_bytes, UniqueFd* fd, const Patience& patience) {
  ChannelStatus waited = ChannelStatus::kOk;
  for (int num_late_tries = 0;;) {
    const ChannelStatus status = receive_now(socket, data, num_bytes, fd);
    if (status != ChannelStatus::kNothing) return status;
    // Who is not waited for any longer may have sent just before.
    if (num_late_tries == kMaxLateTries) return waited;
    waited = wait_ready(socket, POLLIN, patience);
    if (waited == ChannelStatus::kOk) waited = look_at(patience);
    if (waited != ChannelStatus::kOk) ++num_late_tries;
  }
}

}  // namespace epistle
