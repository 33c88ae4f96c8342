// A client of servers on this machine.
#pragma once

#include <cstdint>
#include <string>

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <arpa/inet.h>

namespace epistle::test {

/// A socket that has connected, `client` where one is given. -1 where nobody listens.
inline int connect_to_loopback(std::uint16_t port, int client = -1) {
  if (client < 0) client = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_port = htons(port);
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::connect(client, reinterpret_cast<const sockaddr*>(&name), sizeof(name)) == 0) return client;
  ::close(client);
  return -1;
}

/// What comes until the other end closes.
inline std::string read_to_end(int client) {
  std::string text;
  char buffer[4096];
  for (ssize_t size = 0; (size = ::recv(client, buffer, sizeof(buffer), 0)) > 0;) {
    text.append(buffer, static_cast<std::size_t>(size));
  }
  return text;
}

/// What comes back for `request` until the server closes; nothing where none listens.
inline std::string ask_loopback(std::uint16_t port, const std::string& request) {
  const int client = connect_to_loopback(port);
  if (client < 0) return {};
  (void)!::send(client, request.data(), request.size(), MSG_NOSIGNAL);
  ::shutdown(client, SHUT_WR);
  std::string answer = read_to_end(client);
  ::close(client);
  return answer;
}

}  // namespace epistle::test
