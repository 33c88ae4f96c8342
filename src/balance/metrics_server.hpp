// A small HTTP endpoint from which Prometheus scrapes metrics.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>

namespace epistle::balance {

struct MetricsAddress {
  std::string host = "127.0.0.1";  ///< IPv4, as numbers; only this machine reaches the default
  std::uint16_t port = 0;          ///< 0 = any that is free

  /// "PORT" or "HOST:PORT". Throws kInvalidArgument.
  [[nodiscard]] static MetricsAddress parse(const std::string& text);
};

/// Answers GET and HEAD of /metrics, one client after the other, in a thread of its own. A client that is slow, or
/// sends what is no request, is dropped.
class MetricsServer {
 public:
  using Text = std::function<std::string()>;

  /// `text` is called by the server's thread for every request (metrics_text makes one). Throws kInvalidArgument where
  /// the address is none, kSystem where it cannot be listened at.
  MetricsServer(const MetricsAddress& address, Text text);
  ~MetricsServer();
  MetricsServer(const MetricsServer&) = delete;
  MetricsServer& operator=(const MetricsServer&) = delete;

  [[nodiscard]] std::uint16_t port() const noexcept { return port_; }
  [[nodiscard]] std::int64_t num_scrapes() const noexcept { return num_scrapes_; }

 private:
  void run();
  void serve(int client);

  Text text_;
  int listener_ = -1;
  int stop_event_ = -1;
  std::uint16_t port_ = 0;
  std::atomic<std::int64_t> num_scrapes_{0};
  std::thread thread_;
};

}  // namespace epistle::balance
