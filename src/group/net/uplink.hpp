// What ties the hosts of a group together: a thread of the rank that leads on a host. It tells the other hosts of what
// the ranks here post, and mirrors here what their ranks post, so that a step passes on every host when all ranks of
// all hosts have arrived. Nobody but this thread touches the network.
//
// A post of a remote rank is written at once: the rank has passed the step before, hence all ranks here have arrived in
// that, hence have read what lay in this slot two steps ago. Its arrival counts only when the step before has passed
// here, too: another host's news of that may be on its way still.
//
// Of failures rank 0's host says which one counts. Where it is gone, every host decides by itself; each has lost the
// same.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "group/control.hpp"
#include "group/net/host_message.hpp"
#include "group/net/host_table.hpp"

namespace epistle {

class Uplink {
 public:
  struct Setup {
    HostTable table;
    int host = 0;                 ///< this one
    std::vector<UniqueFd> links;  ///< by host
    int wake = -1;                ///< a descriptor that can be read when there is something to tell
    ControlView control;
    std::chrono::milliseconds timeout{0};
    std::function<bool(int rank)> is_alive;  ///< of a rank of this host
  };

  explicit Uplink(Setup setup);
  /// Tells what there is to tell, then says goodbye.
  ~Uplink();
  Uplink(const Uplink&) = delete;
  Uplink& operator=(const Uplink&) = delete;

 private:
  using Clock = std::chrono::steady_clock;
  struct Link {
    UniqueFd socket;
    std::string inbox;
    std::string outbox;
    Clock::time_point heard;
    Clock::time_point told;
    bool is_silent = false;

    [[nodiscard]] bool is_open() const noexcept { return socket.valid(); }
  };

  void run() noexcept;
  void work();
  void sleep() const;
  void hear_all();
  void hear(std::size_t host);
  [[nodiscard]] bool parse(std::size_t host);
  [[nodiscard]] bool take(std::size_t host, const HostMessageHead& head, std::string_view body);
  [[nodiscard]] bool take_arrived(const HostMessageHead& head, std::string_view body);
  void let_in_waiting();
  void lose(std::size_t host);
  void set_states(std::size_t host, RankState from, RankState to);
  void watch_silence();
  void tell_arrivals();
  void tell_departures();
  void tell_failures();
  void tell_all(const std::string& bytes);
  void send_heartbeats();
  void flush();
  [[nodiscard]] bool has_finished() const;
  void say_goodbye();
  [[nodiscard]] bool root_is_reachable() const noexcept { return links_[0].is_open() && !links_[0].is_silent; }

  HostTable table_;
  int host_;
  std::vector<Link> links_;
  int wake_;
  ControlView control_;
  std::chrono::milliseconds timeout_;
  std::function<bool(int)> is_alive_;
  std::vector<Barrier> barriers_;     ///< by rank: of ranks of other hosts, in whose name this one arrives
  std::vector<int> waiting_;          ///< ranks whose arrival does not count yet
  std::vector<Ticket> told_arrival_;  ///< by rank of this host
  std::vector<bool> told_departure_;
  bool told_failure_ = false;
  std::atomic<bool> stops_{false};
  Clock::time_point stop_deadline_;
  std::thread thread_;
};

}  // namespace epistle
