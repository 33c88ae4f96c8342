#include "group/fd_channel.hpp"

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>

#include <poll.h>
#include <sys/socket.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

namespace epistle {
namespace {

bool is_disconnect(int error) noexcept { return error == EPIPE || error == ECONNRESET || error == ENOTCONN; }

/// Waits until `socket` is ready for `events`.
ChannelStatus wait_ready(int socket, short events, Deadline deadline) {
  for (;;) {
    pollfd entry{socket, events, 0};
    const int num_ready = ::poll(&entry, 1, remaining_ms(deadline));
    if (num_ready > 0) return ChannelStatus::kOk;
    if (num_ready == 0) return ChannelStatus::kTimedOut;
    if (errno != EINTR) throw Error(ErrorCode::kSystem, fmt::format("poll failed: {}", std::strerror(errno)));
  }
}

}  // namespace

int remaining_ms(Deadline deadline) noexcept {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, INT_MAX));
}

ChannelStatus send_message(int socket, const void* data, std::size_t num_bytes, int fd, Deadline deadline) {
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
    if (sent < 0 && is_disconnect(errno)) return ChannelStatus::kClosed;
    if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      if (const auto status = wait_ready(socket, POLLOUT, deadline); status != ChannelStatus::kOk) return status;
    } else if (sent < 0 && errno != EINTR) {
      throw Error(ErrorCode::kSystem, fmt::format("sendmsg failed: {}", std::strerror(errno)));
    }
  }
}

ChannelStatus receive_message(int socket, void* data, std::size_t num_bytes, UniqueFd* fd, Deadline deadline) {
  bool was_reset = false;
  for (;;) {
    if (const auto status = wait_ready(socket, POLLIN, deadline); status != ChannelStatus::kOk) return status;
    iovec part{data, num_bytes};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof(control);
    const ssize_t received = ::recvmsg(socket, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (received < 0) {
      if (errno == EINTR || errno == EAGAIN || errno == EWOULDBLOCK) continue;
      // The other end closed without reading all it was sent. That is reported once, before what it had sent itself.
      if (errno == ECONNRESET && !was_reset) {
        was_reset = true;
        continue;
      }
      if (is_disconnect(errno)) return ChannelStatus::kClosed;
      throw Error(ErrorCode::kSystem, fmt::format("recvmsg failed: {}", std::strerror(errno)));
    }
    const cmsghdr* attached = CMSG_FIRSTHDR(&header);
    if (attached != nullptr && attached->cmsg_level == SOL_SOCKET && attached->cmsg_type == SCM_RIGHTS) {
      int incoming = -1;
      std::memcpy(&incoming, CMSG_DATA(attached), sizeof(int));
      UniqueFd owned(incoming);
      if (fd != nullptr) *fd = std::move(owned);
    }
    return received == static_cast<ssize_t>(num_bytes) ? ChannelStatus::kOk : ChannelStatus::kClosed;
  }
}

}  // namespace epistle
