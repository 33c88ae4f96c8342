// A small HTTP endpoint from which Prometheus scrapes metrics.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "group/descriptor.hpp"

namespace epistle::balance {

struct MetricsAddress {
  std::string host = "127.0.0.1";  ///< IPv4, as numbers; only this machine reaches the default
  std::uint16_t port = 0;          ///< 0 = any that is free

  /// "PORT" or "HOST:PORT". Throws kInvalidArgument.
  [[nodiscard]] static MetricsAddress parse(const std::string& text);
};

/// Answers GET and HEAD of /metrics in a thread of its own. A client that is slow, or sends what is no request, holds
/// up no other, and is dropped.
class MetricsServer {
 public:
  using Text = std::function<std::string()>;
  static constexpr std::chrono::milliseconds kClientPatience{2000};

  /// `text` is called by the server's thread for every request (metrics_text makes one). `patience`: how long a client
  /// may take for its request and the answer. Throws kInvalidArgument where the address is none, kSystem where it
  /// cannot be listened at.
  MetricsServer(const MetricsAddress& address, Text text, std::chrono::milliseconds patience = kClientPatience);
  ~MetricsServer();
  MetricsServer(const MetricsServer&) = delete;
  MetricsServer& operator=(const MetricsServer&) = delete;

  [[nodiscard]] std::uint16_t port() const noexcept { return port_; }
  [[nodiscard]] std::int64_t num_scrapes() const noexcept { return num_scrapes_; }

 private:
  using Clock = std::chrono::steady_clock;

  struct Client {
    UniqueFd socket;
    Clock::time_point deadline;
    std::string request = {};
    std::string answer = {};  ///< what of it is still to be sent; empty until the request is whole
  };

  void run();
  /// False when the server is to stop.
  bool wait_for_work();
  void accept_clients();
  /// False when the client is done with.
  bool serve(Client& client);
  std::string answer_to(const std::string& request);

  Text text_;
  std::chrono::milliseconds patience_;
  UniqueFd listener_;
  UniqueFd stop_event_;
  std::uint16_t port_ = 0;
  std::atomic<std::int64_t> num_scrapes_{0};
  std::vector<Client> clients_;           ///< of the thread
  Clock::time_point accepts_again_ = {};  ///< nobody is let in before
  std::thread thread_;
};

}  // namespace epistle::balance
