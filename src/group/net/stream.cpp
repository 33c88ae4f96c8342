#include "group/net/stream.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "core/object_bytes.hpp"

namespace epistle {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kReadBytes = std::size_t{64} << 10;

bool passes(int error) noexcept { return error == EAGAIN || error == EWOULDBLOCK || error == EINTR; }

UniqueFd open_stream(int family) {
  UniqueFd socket = own_descriptor(::socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (socket.valid()) return socket;
  throw Error(ErrorCode::kSystem, fmt::format("socket failed: {}{}", std::strerror(errno), descriptor_hint(errno)),
              {.phase = Phase::kRendezvous});
}

/// False when the deadline has come first.
bool wait_for(int socket, short events, Deadline deadline) noexcept {
  for (;;) {
    pollfd entry{socket, events, 0};
    const int num_ready = ::poll(&entry, 1, remaining_ms(deadline));
    if (num_ready > 0) return true;
    if (num_ready == 0 && Clock::now() >= deadline) return false;
    if (num_ready < 0 && errno != EINTR) return false;
  }
}

UniqueFd connected_to_another(UniqueFd socket) noexcept {
  if (!is_its_own_peer(socket.get())) return socket;
  socket.reset();
  errno = ECONNREFUSED;
  return {};
}

}  // namespace

bool is_its_own_peer(int socket) noexcept {
  sockaddr_storage own{};
  sockaddr_storage peer{};
  socklen_t own_size = sizeof(own);
  socklen_t peer_size = sizeof(peer);
  return ::getsockname(socket, reinterpret_cast<sockaddr*>(&own), &own_size) == 0 &&
         ::getpeername(socket, reinterpret_cast<sockaddr*>(&peer), &peer_size) == 0 && own_size == peer_size &&
         std::memcmp(&own, &peer, own_size) == 0;
}

UniqueFd listen_at(const SocketAddress& address) {
  UniqueFd socket = open_stream(address.family());
  const int yes = 1;
  // Connections of a job that has ended do not keep the next one from the port.
  (void)::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  if (::bind(socket.get(), address.get(), address.size()) == 0 && ::listen(socket.get(), SOMAXCONN) == 0) return socket;
  const int error = errno;
  const char* hint = "";
  if (error == EADDRINUSE) hint = "; choose another port with EPISTLE_PORT, on all ranks";
  if (error == EADDRNOTAVAIL) {
    hint =
        "; it is no address of this host: set MASTER_ADDR to one of rank 0's host, or name the interface to listen "
        "on with EPISTLE_INTERFACE";
  }
  throw Error(error == EADDRINUSE ? ErrorCode::kInvalidArgument : ErrorCode::kSystem,
              fmt::format("cannot listen at {} ({}){}", address.to_text(), std::strerror(error), hint),
              {.phase = Phase::kRendezvous});
}

UniqueFd connect_to(const SocketAddress& address, Deadline deadline) {
  UniqueFd socket = open_stream(address.family());
  if (::connect(socket.get(), address.get(), address.size()) == 0) return connected_to_another(std::move(socket));
  if (errno != EINPROGRESS && errno != EINTR) return {};
  if (!wait_for(socket.get(), POLLOUT, deadline)) {
    errno = ETIMEDOUT;
    return {};
  }
  int error = 0;
  socklen_t size = sizeof(error);
  (void)::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &size);
  errno = error;
  if (error != 0) return {};
  return connected_to_another(std::move(socket));
}

UniqueFd accept_now(int listener) {
  return own_descriptor(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
}

void send_without_delay(int socket) noexcept {
  const int yes = 1;
  (void)::setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
}

ChannelStatus read_available(int socket, std::string& bytes, std::size_t max_bytes) {
  std::array<char, kReadBytes> buffer;
  bool got_any = false;
  while (max_bytes > 0) {
    const ssize_t received = ::recv(socket, buffer.data(), std::min(max_bytes, buffer.size()), MSG_DONTWAIT);
    if (received == 0) return got_any ? ChannelStatus::kOk : ChannelStatus::kClosed;
    if (received < 0 && errno == EINTR) continue;
    if (received < 0 && passes(errno)) break;
    // Whatever else it says: nothing comes from there any more.
    if (received < 0) return got_any ? ChannelStatus::kOk : ChannelStatus::kClosed;
    bytes.append(buffer.data(), static_cast<std::size_t>(received));
    max_bytes -= static_cast<std::size_t>(received);
    got_any = true;
  }
  return got_any ? ChannelStatus::kOk : ChannelStatus::kNothing;
}

ChannelStatus write_available(int socket, std::string& bytes) {
  std::size_t done = 0;
  ChannelStatus status = ChannelStatus::kOk;
  while (done < bytes.size()) {
    const ssize_t sent = ::send(socket, bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && passes(errno)) break;
    if (sent < 0) {
      status = ChannelStatus::kClosed;
      break;
    }
    done += static_cast<std::size_t>(sent);
  }
  bytes.erase(0, done);
  return status;
}

ChannelStatus send_bytes(int socket, std::string_view bytes, Deadline deadline) {
  std::string rest(bytes);
  for (;;) {
    const ChannelStatus status = write_available(socket, rest);
    if (status != ChannelStatus::kOk || rest.empty()) return status;
    if (!wait_for(socket, POLLOUT, deadline)) return ChannelStatus::kTimedOut;
  }
}

ChannelStatus receive_bytes(int socket, std::size_t num_bytes, std::string& bytes, Deadline deadline) {
  bytes.clear();
  while (bytes.size() < num_bytes) {
    const ChannelStatus status = read_available(socket, bytes, num_bytes - bytes.size());
    if (status == ChannelStatus::kClosed) return status;
    if (status == ChannelStatus::kNothing && !wait_for(socket, POLLIN, deadline)) return ChannelStatus::kTimedOut;
  }
  return ChannelStatus::kOk;
}

ChannelStatus send_text(int socket, std::string_view text, Deadline deadline) {
  const std::uint64_t num_bytes = text.size();
  std::string framed(object_bytes(num_bytes));
  return send_bytes(socket, framed.append(text), deadline);
}

ChannelStatus receive_text(int socket, std::string& text, Deadline deadline) {
  std::string head;
  if (const auto status = receive_bytes(socket, sizeof(std::uint64_t), head, deadline); status != ChannelStatus::kOk) {
    return status;
  }
  std::uint64_t num_bytes = 0;
  std::memcpy(&num_bytes, head.data(), sizeof(num_bytes));
  if (num_bytes > kMaxTextBytes) return ChannelStatus::kMalformed;
  return receive_bytes(socket, static_cast<std::size_t>(num_bytes), text, deadline);
}

}  // namespace epistle
