// Addresses of TCP sockets: of names, of this host's interfaces, and as text.
#pragma once

#include <cstdint>
#include <string>

#include <netinet/in.h>
#include <sys/socket.h>

namespace epistle {

class SocketAddress {
 public:
  /// 0.0.0.0, port 0.
  SocketAddress() noexcept;
  SocketAddress(const sockaddr* address, socklen_t num_bytes) noexcept;

  [[nodiscard]] const sockaddr* get() const noexcept { return reinterpret_cast<const sockaddr*>(&storage_); }
  [[nodiscard]] socklen_t size() const noexcept { return num_bytes_; }
  [[nodiscard]] int family() const noexcept { return storage_.ss_family; }
  [[nodiscard]] std::uint16_t port() const noexcept;
  [[nodiscard]] SocketAddress with_port(std::uint16_t port) const noexcept;
  [[nodiscard]] bool is_loopback() const noexcept;
  /// "10.0.0.1:29501", "[fe80::1]:29501".
  [[nodiscard]] std::string to_text() const;
  [[nodiscard]] std::string host_text() const;

 private:
  sockaddr_storage storage_{};
  socklen_t num_bytes_ = sizeof(sockaddr_in);
};

/// Where a job's ranks of several hosts meet, as a user writes it: "node1:29501", "[fd00::1]:29501".
struct HostAndPort {
  std::string host;
  std::uint16_t port = 0;
};

/// Throws kInvalidArgument.
[[nodiscard]] HostAndPort parse_host_and_port(const std::string& text);

/// The first address of a name or a number, IPv4 before IPv6. Throws kNotFound.
[[nodiscard]] SocketAddress resolve(const HostAndPort& where);

/// The address of this host's network interface `name` ("eth0"), IPv4 before IPv6; port 0. Throws kNotFound, with the
/// interfaces that there are.
[[nodiscard]] SocketAddress address_of_interface(const std::string& name);

/// The network interface of this host that has the address; empty where none has.
[[nodiscard]] std::string interface_of(const SocketAddress& address);

/// This end of a connected or listening socket. Throws kSystem.
[[nodiscard]] SocketAddress own_address(int socket);

}  // namespace epistle
