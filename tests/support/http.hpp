// A client of servers on this machine.
#pragma once

#include <cstdint>
#include <string>

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <arpa/inet.h>

namespace epistle::test {

/// What comes back for `request` until the server closes; nothing where none listens.
inline std::string ask_loopback(std::uint16_t port, const std::string& request) {
  const int client = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_port = htons(port);
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  if (::connect(client, reinterpret_cast<const sockaddr*>(&name), sizeof(name)) == 0) {
    (void)!::send(client, request.data(), request.size(), MSG_NOSIGNAL);
    ::shutdown(client, SHUT_WR);
    char buffer[4096];
    for (ssize_t size = 0; (size = ::recv(client, buffer, sizeof(buffer), 0)) > 0;) {
      answer.append(buffer, static_cast<std::size_t>(size));
    }
  }
  ::close(client);
  return answer;
}

}  // namespace epistle::test
