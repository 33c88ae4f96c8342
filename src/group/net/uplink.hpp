// What ties the hosts of a group together: a thread of the rank that leads on a host. It tells the other hosts of what
// the ranks here post, and mirrors here what their ranks post, so that a step passes on every host when all ranks of
// all hosts have arrived. Nobody but this thread touches the network.
//
// A post of a remote rank is written at once: the rank has passed the step before, hence all ranks here have arrived in
// that, hence have read what lay in this slot two steps ago. Its arrival counts only when the step before has passed
// here, too: another host's news of that may be on its way still.
//
// Of failures the host of the lowest rank that is not masked out says which one counts. Where it is gone, every host
// decides by itself; each has lost the same.
//
// A change of the mask (group_masks.cpp): proposals travel as arrivals do. The host whose rank has made a mask count
// tells it to all others, and so does every host that hears of it, before it tells of any step under that mask. So who
// hears of such a step knows the mask, whichever host is lost in between; and what is said under another mask than
// one's own is late, and ignored.
#pragma once

#include <array>
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
  [[nodiscard]] bool is_rank_of(int rank, std::size_t host) const noexcept;
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
  /// Those hosts that have ranks that are not masked out.
  void tell_members(const std::string& bytes);
  void send_heartbeats();
  void flush();
  [[nodiscard]] bool has_finished() const;
  void say_goodbye();
  [[nodiscard]] const std::vector<int>& own_ranks() const noexcept {
    return table_.hosts[static_cast<std::size_t>(host_)].ranks;
  }
  [[nodiscard]] Link& root_link() noexcept { return links_[static_cast<std::size_t>(root_host_)]; }
  [[nodiscard]] bool root_is_reachable() noexcept { return root_link().is_open() && !root_link().is_silent; }

  // Masks (uplink_masks.cpp)
  [[nodiscard]] std::uint16_t mask_number() const noexcept { return GroupFailure::unpack(quiet_).mask_number; }
  /// Whether the word of this host says what this thread has followed.
  [[nodiscard]] bool has_followed_mask() const noexcept;
  /// Where a rank of this host has made a mask count, goes by it and tells the others.
  void follow_own_mask();
  [[nodiscard]] int own_leader_of(std::uint64_t word) const noexcept;
  [[nodiscard]] bool hear_of_mask(std::size_t host, const HostMessageHead& head, std::string_view body);
  [[nodiscard]] bool has_common_rank(const MaskNews& news) const;
  [[nodiscard]] bool takes_place(const MaskNews& news) const;
  [[nodiscard]] bool put_in_force(const MaskNews& news, bool has_followed) noexcept;
  [[nodiscard]] bool await_own_mask();
  void go_by(const MaskNews& news);
  void tell_proposals();

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
  bool told_failure_ = false;  ///< of the mask in force
  RankMask mask_;
  MaskNews in_force_;                                         ///< what mask_ is of, once there has been a change
  std::uint64_t quiet_ = 0;                                   ///< quiet_word() of the mask that this thread goes by
  int root_host_ = 0;                                         ///< that of the lowest rank that is not masked out
  std::vector<std::array<std::uint64_t, 2>> told_proposals_;  ///< by rank of this host
  std::atomic<bool> stops_{false};
  Clock::time_point stop_deadline_;
  std::thread thread_;
};

}  // namespace epistle
