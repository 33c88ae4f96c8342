#include "group/net/address.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <ifaddrs.h>
#include <netdb.h>

#include <arpa/inet.h>
#include <fmt/format.h>
#include <net/if.h>

#include "epistle/error.hpp"

namespace epistle {
namespace {

constexpr int kMaxPort = 65535;

/// IPv4 goes first: its addresses need no scope.
bool is_better(const SocketAddress& candidate, const std::optional<SocketAddress>& best) noexcept {
  return !best || (candidate.family() == AF_INET && best->family() != AF_INET);
}

struct OwnAddress {
  std::string interface;
  SocketAddress address;
};

/// Of the interfaces that are up.
std::vector<OwnAddress> own_addresses() {
  ifaddrs* all = nullptr;
  if (::getifaddrs(&all) != 0) {
    throw Error(ErrorCode::kSystem, fmt::format("getifaddrs failed: {}", std::strerror(errno)));
  }
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> owner(all, ::freeifaddrs);
  std::vector<OwnAddress> found;
  for (const ifaddrs* entry = all; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr || (entry->ifa_flags & IFF_UP) == 0) continue;
    const int family = entry->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    const socklen_t num_bytes = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
    found.push_back({entry->ifa_name, SocketAddress(entry->ifa_addr, num_bytes)});
  }
  return found;
}

}  // namespace

SocketAddress::SocketAddress() noexcept { storage_.ss_family = AF_INET; }

SocketAddress::SocketAddress(const sockaddr* address, socklen_t num_bytes) noexcept
    : num_bytes_(std::min<socklen_t>(num_bytes, sizeof(storage_))) {
  std::memcpy(&storage_, address, num_bytes_);
}

std::uint16_t SocketAddress::port() const noexcept {
  if (family() == AF_INET6) return ntohs(reinterpret_cast<const sockaddr_in6*>(&storage_)->sin6_port);
  return ntohs(reinterpret_cast<const sockaddr_in*>(&storage_)->sin_port);
}

SocketAddress SocketAddress::with_port(std::uint16_t port) const noexcept {
  SocketAddress copy = *this;
  if (family() == AF_INET6) {
    reinterpret_cast<sockaddr_in6*>(&copy.storage_)->sin6_port = htons(port);
  } else {
    reinterpret_cast<sockaddr_in*>(&copy.storage_)->sin_port = htons(port);
  }
  return copy;
}

bool SocketAddress::is_loopback() const noexcept {
  if (family() == AF_INET6) return IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6*>(&storage_)->sin6_addr);
  constexpr std::uint32_t kLoopbackNet = 127;
  return ntohl(reinterpret_cast<const sockaddr_in*>(&storage_)->sin_addr.s_addr) >> 24 == kLoopbackNet;
}

std::string SocketAddress::host_text() const {
  std::array<char, NI_MAXHOST> host{};
  if (::getnameinfo(get(), size(), host.data(), host.size(), nullptr, 0, NI_NUMERICHOST) != 0) return "?";
  return host.data();
}

std::string SocketAddress::to_text() const {
  return family() == AF_INET6 ? fmt::format("[{}]:{}", host_text(), port()) : fmt::format("{}:{}", host_text(), port());
}

HostAndPort parse_host_and_port(const std::string& text) {
  const std::size_t colon = text.rfind(':');
  int port = -1;
  if (colon != std::string::npos) {
    const auto [end, status] = std::from_chars(text.data() + colon + 1, text.data() + text.size(), port);
    if (status != std::errc{} || end != text.data() + text.size()) port = -1;
  }
  std::string host = text.substr(0, colon == std::string::npos ? 0 : colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  if (host.empty() || port < 1 || port > kMaxPort) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("'{}' is no address where ranks could meet; it must be HOST:PORT, with a port from 1 to {}",
                            text, kMaxPort));
  }
  return {std::move(host), static_cast<std::uint16_t>(port)};
}

SocketAddress resolve(const HostAndPort& where) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int status = ::getaddrinfo(where.host.c_str(), std::to_string(where.port).c_str(), &hints, &found);
  if (status != 0) {
    throw Error(ErrorCode::kNotFound,
                fmt::format("the host '{}', where the ranks meet, cannot be found: {}; set MASTER_ADDR to the name or "
                            "the address of rank 0's host",
                            where.host, ::gai_strerror(status)),
                {.phase = Phase::kRendezvous});
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, ::freeaddrinfo);
  std::optional<SocketAddress> best;
  for (const addrinfo* entry = found; entry != nullptr; entry = entry->ai_next) {
    const SocketAddress candidate(entry->ai_addr, entry->ai_addrlen);
    if (is_better(candidate, best)) best = candidate;
  }
  return best.value();
}

SocketAddress address_of_interface(const std::string& name) {
  std::optional<SocketAddress> best;
  std::string names;
  for (const OwnAddress& own : own_addresses()) {
    names += fmt::format("{}{} ({})", names.empty() ? "" : ", ", own.interface, own.address.host_text());
    if (name == own.interface && is_better(own.address, best)) best = own.address;
  }
  if (best) return *best;
  throw Error(ErrorCode::kNotFound,
              fmt::format("EPISTLE_INTERFACE is '{}', which is no interface of this host that is up and has an "
                          "address; there are: {}",
                          name, names.empty() ? "none" : names),
              {.phase = Phase::kRendezvous});
}

std::string interface_of(const SocketAddress& address) {
  const std::vector<OwnAddress> all = own_addresses();
  const auto found = std::find_if(
      all.begin(), all.end(), [&](const OwnAddress& own) { return own.address.host_text() == address.host_text(); });
  return found == all.end() ? std::string() : found->interface;
}

SocketAddress own_address(int socket) {
  sockaddr_storage storage{};
  socklen_t num_bytes = sizeof(storage);
  if (::getsockname(socket, reinterpret_cast<sockaddr*>(&storage), &num_bytes) != 0) {
    throw Error(ErrorCode::kSystem, fmt::format("getsockname failed: {}", std::strerror(errno)));
  }
  return {reinterpret_cast<const sockaddr*>(&storage), num_bytes};
}

}  // namespace epistle
