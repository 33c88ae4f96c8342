#include "balance/metrics_server.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <string_view>
#include <system_error>
#include <utility>

#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <fmt/format.h>

#include "core/reject.hpp"
#include "group/fd_channel.hpp"

namespace epistle::balance {
namespace {

constexpr std::size_t kMaxRequestBytes = 8192;
constexpr std::string_view kEndOfHead = "\r\n\r\n";
constexpr int kBacklog = 16;
// More wait in the backlog until one of these is answered or dropped.
constexpr std::size_t kMaxClients = 64;
// Where there is no descriptor left, the listener stays ready; asking it all the time would keep a core busy.
constexpr std::chrono::milliseconds kPauseOfShortage{50};

std::string last_error() { return std::generic_category().message(errno); }

bool passes_with_time(int error) noexcept { return error == EINTR || error == EAGAIN || error == EWOULDBLOCK; }

std::string response(std::string_view status, std::string_view type, std::string_view body, bool with_body) {
  return fmt::format("HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n{}\r\n{}", status,
                     type, body.size(), status.starts_with("405") ? "Allow: GET, HEAD\r\n" : "", with_body ? body : "");
}

struct RequestLine {
  std::string_view method;
  std::string_view path;  ///< without what follows '?'
};

/// Empty where the request is none.
RequestLine parse_request(std::string_view request) {
  if (request.find(kEndOfHead) == std::string_view::npos) return {};
  const std::string_view line = request.substr(0, request.find("\r\n"));
  const std::size_t first = line.find(' ');
  const std::size_t last = line.rfind(' ');
  if (first == std::string_view::npos || last <= first || !line.substr(last + 1).starts_with("HTTP/1.")) return {};
  const std::string_view target = line.substr(first + 1, last - first - 1);
  return {.method = line.substr(0, first), .path = target.substr(0, target.find('?'))};
}

}  // namespace

MetricsAddress MetricsAddress::parse(const std::string& text) {
  MetricsAddress address;
  const std::size_t colon = text.rfind(':');
  if (colon != std::string::npos) address.host = text.substr(0, colon);
  const std::string_view port = std::string_view(text).substr(colon == std::string::npos ? 0 : colon + 1);
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), address.port);
  in_addr parsed{};
  if (error != std::errc() || end != port.data() + port.size() ||
      ::inet_pton(AF_INET, address.host.c_str(), &parsed) != 1) {
    reject(fmt::format(
        "the address is '{}', expected PORT or HOST:PORT, the host as 127.0.0.1 and the port of 0 to 65535", text));
  }
  return address;
}

MetricsServer::MetricsServer(const MetricsAddress& address, Text text, std::chrono::milliseconds patience)
    : text_(std::move(text)), patience_(patience) {
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_port = htons(address.port);
  if (::inet_pton(AF_INET, address.host.c_str(), &name.sin_addr) != 1) {
    reject(fmt::format("the host is '{}', expected an address as 127.0.0.1", address.host));
  }
  const auto fail = [&](const std::string& reason) {
    throw Error(ErrorCode::kSystem,
                fmt::format("cannot serve metrics at {}:{}: {}; give another port, or 0 for any that is free",
                            address.host, address.port, reason));
  };
  listener_ = own_descriptor(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener_.valid()) fail(last_error() + descriptor_hint(errno));
  const int yes = 1;
  (void)::setsockopt(listener_.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  socklen_t size = sizeof(name);
  if (::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&name), sizeof(name)) != 0 ||
      ::listen(listener_.get(), kBacklog) != 0 ||
      ::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&name), &size) != 0) {
    fail(last_error());
  }
  port_ = ntohs(name.sin_port);
  stop_event_ = own_descriptor(::eventfd(0, EFD_CLOEXEC));
  if (!stop_event_.valid()) fail(last_error() + descriptor_hint(errno));
  try {
    thread_ = std::thread([this] { run(); });
  } catch (const std::system_error& error) {
    fail(fmt::format("no thread can be started: {}", error.what()));
  }
}

MetricsServer::~MetricsServer() {
  const std::uint64_t one = 1;
  // An event counter takes eight bytes at once.
  (void)!::write(stop_event_.get(), &one, sizeof(one));
  thread_.join();
}

void MetricsServer::run() {
  while (wait_for_work()) {
    std::erase_if(clients_, [this](Client& client) { return !serve(client); });
    if (clients_.size() < kMaxClients && Clock::now() >= accepts_again_) accept_clients();
  }
}

bool MetricsServer::wait_for_work() {
  const bool accepts = clients_.size() < kMaxClients && Clock::now() >= accepts_again_;
  std::vector<pollfd> waits = {{stop_event_.get(), POLLIN, 0}};
  if (accepts) waits.push_back({listener_.get(), POLLIN, 0});
  Clock::time_point next = Clock::time_point::max();
  if (!accepts && clients_.size() < kMaxClients) next = accepts_again_;
  for (const Client& client : clients_) {
    waits.push_back({client.socket.get(), static_cast<short>(client.answer.empty() ? POLLIN : POLLOUT), 0});
    next = std::min(next, client.deadline);
  }
  const bool has_end = next != Clock::time_point::max();
  const int num_ready = ::poll(waits.data(), waits.size(), has_end ? remaining_ms(next) : -1);
  // What the kernel lacks for a moment it is not asked for again at once.
  if (num_ready < 0 && errno != EINTR) std::this_thread::sleep_for(kPauseOfShortage);
  return num_ready <= 0 || (waits[0].revents & POLLIN) == 0;
}

void MetricsServer::accept_clients() {
  while (clients_.size() < kMaxClients) {
    UniqueFd socket = own_descriptor(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (socket.valid()) {
      clients_.push_back({.socket = std::move(socket), .deadline = Clock::now() + patience_});
      continue;
    }
    if (errno == ECONNABORTED || errno == EINTR) continue;
    if (!passes_with_time(errno)) accepts_again_ = Clock::now() + kPauseOfShortage;
    return;
  }
}

bool MetricsServer::serve(Client& client) {
  const int socket = client.socket.get();
  bool has_more = client.answer.empty();
  std::array<char, 1024> buffer{};
  while (has_more && client.request.size() < kMaxRequestBytes && client.request.find(kEndOfHead) == std::string::npos) {
    const ssize_t num_bytes = ::recv(socket, buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (num_bytes > 0) {
      client.request.append(buffer.data(), static_cast<std::size_t>(num_bytes));
    } else if (num_bytes < 0 && passes_with_time(errno)) {
      if (Clock::now() < client.deadline) return true;
      has_more = false;
    } else {
      has_more = false;
    }
  }
  if (client.answer.empty()) client.answer = answer_to(client.request);
  while (!client.answer.empty()) {
    const ssize_t num_bytes = ::send(socket, client.answer.data(), client.answer.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (num_bytes < 0) return passes_with_time(errno) && Clock::now() < client.deadline;
    client.answer.erase(0, static_cast<std::size_t>(num_bytes));
  }
  return false;
}

std::string MetricsServer::answer_to(const std::string& request) {
  const RequestLine line = parse_request(request);
  constexpr std::string_view kPlain = "text/plain; charset=utf-8";
  if (line.method.empty()) return response("400 Bad Request", kPlain, "no HTTP/1 request\n", true);
  if (line.method != "GET" && line.method != "HEAD") {
    return response("405 Method Not Allowed", kPlain, "GET or HEAD\n", true);
  }
  if (line.path != "/metrics") {
    return response("404 Not Found", kPlain, "the metrics are at /metrics\n", line.method == "GET");
  }
  try {
    std::string answer = response("200 OK", "text/plain; version=0.0.4; charset=utf-8", text_(), line.method == "GET");
    ++num_scrapes_;
    return answer;
  } catch (const std::exception& error) {
    return response("500 Internal Server Error", kPlain, fmt::format("{}\n", error.what()), true);
  }
}

}  // namespace epistle::balance
