#include "group/descriptor_mail.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <deque>
#include <random>
#include <thread>
#include <utility>

#include <sys/socket.h>
#include <sys/un.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "group/meeting_address.hpp"

namespace epistle {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::microseconds kPause{100};

struct Message {
  std::uint64_t token;
  std::int32_t rank;
  std::int32_t padding;
};

[[noreturn]] void throw_errno(const char* what) {
  const int error = errno;
  throw Error(ErrorCode::kSystem, fmt::format("{} failed: {}{}", what, std::strerror(error), descriptor_hint(error)));
}

/// A socket whose messages all go to `address`; invalid where nobody has that any more.
UniqueFd open_socket_to(const DescriptorMail::Address& address) {
  UniqueFd socket = open_socket(SOCK_DGRAM);
  sockaddr_un peer{};
  peer.sun_family = AF_UNIX;
  std::memcpy(peer.sun_path, address.name, address.name_bytes);
  const auto num_bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + address.name_bytes);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&peer), num_bytes) != 0) {
    if (errno == ECONNREFUSED) return {};
    throw_errno("connecting a socket to another rank's");
  }
  return socket;
}

std::uint64_t random_token() {
  std::random_device device;
  return (std::uint64_t{device()} << 32) | device();
}

}  // namespace

DescriptorMail::DescriptorMail() : socket_(open_socket(SOCK_DGRAM)) {
  // Without a name: the kernel finds one that nobody has.
  sockaddr_un own{};
  own.sun_family = AF_UNIX;
  if (::bind(socket_.get(), reinterpret_cast<const sockaddr*>(&own), sizeof(own.sun_family)) != 0) {
    throw_errno("naming a socket");
  }
  socklen_t num_bytes = sizeof(own);
  if (::getsockname(socket_.get(), reinterpret_cast<sockaddr*>(&own), &num_bytes) != 0) {
    throw_errno("asking for the name of a socket");
  }
  address_.token = random_token();
  address_.name_bytes = static_cast<std::uint32_t>(num_bytes - offsetof(sockaddr_un, sun_path));
  if (address_.name_bytes > sizeof(address_.name)) {
    throw Error(ErrorCode::kSystem, fmt::format("the kernel names a socket with {} bytes; at most {} are expected",
                                                address_.name_bytes, sizeof(address_.name)));
  }
  std::memcpy(address_.name, own.sun_path, address_.name_bytes);
}

/// Sends and receives in turns: a queue holds few messages, and who sends to a full one may be waited for itself.
class DescriptorMail::Exchange {
 public:
  Exchange(int socket, const Members& members, const UniqueFd& file)
      : socket_(socket), members_(members), file_(file), files_(members.addresses.size()) {
    const auto own = std::find(members.ranks.begin(), members.ranks.end(), members.own);
    // From the own rank on, so that not all begin with the same one.
    unsent_.assign(own + 1, members.ranks.end());
    unsent_.insert(unsent_.end(), members.ranks.begin(), own);
    missing_.assign(unsent_.begin(), unsent_.end());
    UniqueFd& kept = files_[static_cast<std::size_t>(members.own)];
    kept = duplicate(file.get());
    if (!kept.valid()) throw_errno("duplicating a descriptor");
  }

  [[nodiscard]] bool is_done() const noexcept { return unsent_.empty() && missing_.empty(); }
  [[nodiscard]] int first_missing() const noexcept { return missing_.empty() ? unsent_.front() : missing_.front(); }
  [[nodiscard]] std::vector<UniqueFd> take() noexcept { return std::move(files_); }

  /// True when something has moved.
  bool step() {
    const bool has_sent = send_one();
    return receive_one() || has_sent;
  }

 private:
  bool send_one() {
    if (unsent_.empty()) return false;
    const Address& address = members_.addresses[static_cast<std::size_t>(unsent_.front())];
    const UniqueFd socket = open_socket_to(address);
    if (!socket.valid()) return false;
    const Message message{.token = address.token, .rank = members_.own, .padding = 0};
    const ChannelStatus status = send_message(socket.get(), message, file_.get(), {.deadline = Clock::now()});
    if (status != ChannelStatus::kOk) return false;
    unsent_.pop_front();
    return true;
  }

  bool receive_one() {
    Message message{};
    UniqueFd file;
    if (receive_now(socket_, message, &file) != ChannelStatus::kOk) return false;
    const auto sender = std::find(missing_.begin(), missing_.end(), message.rank);
    const std::uint64_t token = members_.addresses[static_cast<std::size_t>(members_.own)].token;
    // Whoever else has found the name of the socket.
    if (message.token != token || sender == missing_.end() || !file.valid()) return true;
    files_[static_cast<std::size_t>(message.rank)] = std::move(file);
    missing_.erase(sender);
    return true;
  }

  int socket_;
  const Members& members_;
  const UniqueFd& file_;
  std::vector<UniqueFd> files_;
  std::deque<int> unsent_;
  std::vector<int> missing_;
};

std::vector<UniqueFd> DescriptorMail::exchange(const Members& members, const UniqueFd& file, Deadline deadline,
                                               const std::function<bool(int peer)>& is_hopeless) const {
  Exchange exchange(socket_.get(), members, file);
  while (!exchange.is_done()) {
    if (exchange.step()) continue;
    const int peer = exchange.first_missing();
    const bool is_lost = is_hopeless(peer);
    // What it sent before it was lost is there by now.
    if (is_lost && exchange.step()) continue;
    if (is_lost || Clock::now() >= deadline) {
      throw Error(is_lost ? ErrorCode::kPeerLost : ErrorCode::kTimeout,
                  fmt::format("rank {} has not sent a descriptor of its memory", peer),
                  {.rank = members.own, .peer_rank = peer, .phase = Phase::kCreate});
    }
    std::this_thread::sleep_for(kPause);
  }
  return exchange.take();
}

}  // namespace epistle
