#include "balance/metrics_server.hpp"

#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
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

namespace epistle::balance {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kClientPatience{2};
constexpr std::size_t kMaxRequestBytes = 8192;
constexpr int kBacklog = 16;

std::string last_error() { return std::generic_category().message(errno); }

/// False where nothing came of it before the deadline.
bool wait_until_ready(int fd, short events, Clock::time_point deadline) {
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    if (left <= 0) return false;
    pollfd waiting{.fd = fd, .events = events, .revents = 0};
    const int ready = ::poll(&waiting, 1, static_cast<int>(left));
    if (ready > 0) return true;
    if (ready == 0 || errno != EINTR) return false;
  }
}

/// The head of a request, up to its empty line; what was read where it has none.
std::string read_request(int client, Clock::time_point deadline) {
  std::string request;
  std::array<char, 1024> buffer{};
  while (request.size() < kMaxRequestBytes && request.find("\r\n\r\n") == std::string::npos) {
    if (!wait_until_ready(client, POLLIN, deadline)) break;
    const ssize_t num_bytes = ::recv(client, buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (num_bytes == 0) break;
    if (num_bytes < 0) {
      if (errno == EINTR || errno == EAGAIN) continue;
      break;
    }
    request.append(buffer.data(), static_cast<std::size_t>(num_bytes));
  }
  return request;
}

void write_all(int client, std::string_view text, Clock::time_point deadline) {
  while (!text.empty() && wait_until_ready(client, POLLOUT, deadline)) {
    const ssize_t num_bytes = ::send(client, text.data(), text.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (num_bytes < 0 && errno != EINTR && errno != EAGAIN) return;
    if (num_bytes > 0) text.remove_prefix(static_cast<std::size_t>(num_bytes));
  }
}

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
  if (request.find("\r\n\r\n") == std::string_view::npos) return {};
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

MetricsServer::MetricsServer(const MetricsAddress& address, Text text) : text_(std::move(text)) {
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_port = htons(address.port);
  if (::inet_pton(AF_INET, address.host.c_str(), &name.sin_addr) != 1) {
    reject(fmt::format("the host is '{}', expected an address as 127.0.0.1", address.host));
  }
  const auto fail = [&] {
    const std::string reason = last_error();
    if (listener_ >= 0) ::close(listener_);
    if (stop_event_ >= 0) ::close(stop_event_);
    throw Error(ErrorCode::kSystem,
                fmt::format("cannot serve metrics at {}:{}: {}; give another port, or 0 for any that is free",
                            address.host, address.port, reason));
  };
  listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (listener_ < 0) fail();
  const int yes = 1;
  (void)::setsockopt(listener_, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  socklen_t size = sizeof(name);
  if (::bind(listener_, reinterpret_cast<const sockaddr*>(&name), sizeof(name)) != 0 ||
      ::listen(listener_, kBacklog) != 0 || ::getsockname(listener_, reinterpret_cast<sockaddr*>(&name), &size) != 0) {
    fail();
  }
  port_ = ntohs(name.sin_port);
  stop_event_ = ::eventfd(0, EFD_CLOEXEC);
  if (stop_event_ < 0) fail();
  thread_ = std::thread([this] { run(); });
}

MetricsServer::~MetricsServer() {
  const std::uint64_t one = 1;
  // An event counter takes eight bytes at once.
  (void)!::write(stop_event_, &one, sizeof(one));
  thread_.join();
  ::close(listener_);
  ::close(stop_event_);
}

void MetricsServer::run() {
  for (;;) {
    std::array<pollfd, 2> waiting = {pollfd{.fd = listener_, .events = POLLIN, .revents = 0},
                                     pollfd{.fd = stop_event_, .events = POLLIN, .revents = 0}};
    if (::poll(waiting.data(), waiting.size(), -1) < 0 && errno != EINTR) return;
    if ((waiting[1].revents & POLLIN) != 0) return;
    if ((waiting[0].revents & POLLIN) == 0) continue;
    const int client = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (client < 0) continue;
    serve(client);
    ::close(client);
  }
}

void MetricsServer::serve(int client) {
  const Clock::time_point deadline = Clock::now() + kClientPatience;
  const std::string request = read_request(client, deadline);
  const RequestLine line = parse_request(request);
  constexpr std::string_view kPlain = "text/plain; charset=utf-8";
  std::string answer;
  if (line.method.empty()) {
    answer = response("400 Bad Request", kPlain, "no HTTP/1 request\n", true);
  } else if (line.method != "GET" && line.method != "HEAD") {
    answer = response("405 Method Not Allowed", kPlain, "GET or HEAD\n", true);
  } else if (line.path != "/metrics") {
    answer = response("404 Not Found", kPlain, "the metrics are at /metrics\n", line.method == "GET");
  } else {
    try {
      answer = response("200 OK", "text/plain; version=0.0.4; charset=utf-8", text_(), line.method == "GET");
      ++num_scrapes_;
    } catch (const std::exception& error) {
      answer = response("500 Internal Server Error", kPlain, fmt::format("{}\n", error.what()), true);
    }
  }
  write_all(client, answer, deadline);
}

}  // namespace epistle::balance
