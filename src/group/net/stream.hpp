// Bytes over TCP. No call blocks longer than until its deadline.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "group/fd_channel.hpp"
#include "group/net/address.hpp"

namespace epistle {

/// A socket that listens. Throws kSystem, or kInvalidArgument where the address is in use.
[[nodiscard]] UniqueFd listen_at(const SocketAddress& address);

/// Where nobody listens at a port of those that the system gives away, a socket that wants to go there may be given
/// that very port, and is then connected to itself. connect_to() takes it for one that was refused.
[[nodiscard]] bool is_its_own_peer(int socket) noexcept;

/// A connected socket, or none: with errno set where nobody is there, the way is barred, or the deadline has come.
[[nodiscard]] UniqueFd connect_to(const SocketAddress& address, Deadline deadline);

/// The next connection, none where there is none now.
[[nodiscard]] UniqueFd accept_now(int listener);

/// Small messages leave at once. Best effort.
void send_without_delay(int socket) noexcept;

[[nodiscard]] ChannelStatus send_bytes(int socket, std::string_view bytes, Deadline deadline);
/// Exactly `num_bytes`.
[[nodiscard]] ChannelStatus receive_bytes(int socket, std::size_t num_bytes, std::string& bytes, Deadline deadline);

/// A text of any length up to a bound, with its length in front.
inline constexpr std::size_t kMaxTextBytes = std::size_t{64} << 20;
[[nodiscard]] ChannelStatus send_text(int socket, std::string_view text, Deadline deadline);
[[nodiscard]] ChannelStatus receive_text(int socket, std::string& text, Deadline deadline);

/// What can be read now, behind `bytes`. kNothing where there is nothing, kClosed at the end.
[[nodiscard]] ChannelStatus read_available(int socket, std::string& bytes, std::size_t max_bytes);
/// Takes from the front of `bytes` what the socket takes now; kOk also where that is nothing.
[[nodiscard]] ChannelStatus write_available(int socket, std::string& bytes);

}  // namespace epistle
