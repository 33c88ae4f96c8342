#include "group/meeting.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <optional>
#include <thread>
#include <utility>

#include <poll.h>
#include <sys/socket.h>

#include <fmt/format.h>

#include "core/complaint.hpp"
#include "group/fd_channel.hpp"
#include "group/limits.hpp"
#include "group/meeting_address.hpp"
#include "group/rendezvous_packet.hpp"

namespace epistle {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kConnectRetry{2};
constexpr std::chrono::milliseconds kAnswerTime{100};
// How long rank 0, having failed, stays for ranks that have not come yet.
constexpr std::chrono::milliseconds kFarewell{2000};
// Connections whose owner has not said who it is; the oldest has to go when there are more.
constexpr std::size_t kMaxStrangers = 64;
// Tries at accept, over some 200 ms, before a shortage of descriptors counts as lasting.
constexpr int kMaxAcceptTries = 40;
constexpr std::chrono::milliseconds kAcceptRetry{5};
constexpr int kMaxUnknownVisitors = 100;

/// Rank 0 while the others come.
class Meeting {
 public:
  Meeting(const std::string& job, int num_ranks, std::chrono::milliseconds timeout)
      : address_(job),
        num_ranks_(num_ranks),
        timeout_(timeout),
        deadline_(Clock::now() + timeout),
        sockets_(static_cast<std::size_t>(num_ranks)),
        was_told_(static_cast<std::size_t>(num_ranks), false) {}

  std::vector<UniqueFd> hold() {
    open();
    const Complaint broken = attempt([this] {
      while (num_joined_ < num_ranks_ && !failure_) step(deadline_);
    });
    if (broken) fail(broken->code(), 0, broken->message());
    if (!failure_) return std::move(sockets_);
    say_farewell();
    throw error_of(*failure_, 0);
  }

 private:
  void open() {
    listener_ = open_socket();
    if (::bind(listener_.get(), address_.get(), address_.name_bytes) != 0) {
      const int error = errno;
      const bool taken = error == EADDRINUSE;
      throw Error(taken ? ErrorCode::kInvalidArgument : ErrorCode::kSystem,
                  fmt::format("cannot open the meeting point of this job ({}){}", std::strerror(error),
                              taken ? "; is another rank 0 of the same job running?" : ""),
                  {.rank = 0, .phase = Phase::kRendezvous});
    }
    if (::listen(listener_.get(), std::max(num_ranks_, SOMAXCONN)) != 0) {
      throw Error(ErrorCode::kSystem, fmt::format("listen failed: {}", std::strerror(errno)),
                  {.rank = 0, .phase = Phase::kRendezvous});
    }
    // Kept free to talk to those for whom no descriptor is left.
    spare_ = duplicate(listener_.get());
  }

  void fail(ErrorCode code, int rank, std::string_view text) {
    if (!failure_) failure_ = failure_packet(PacketKind::kVerdict, code, rank, Phase::kRendezvous, text);
  }

  /// Waits for something to happen, and sees to it.
  void step(Deadline deadline) {
    std::vector<pollfd> entries = {{listener_.get(), POLLIN, 0}};
    for (const UniqueFd& stranger : strangers_) entries.push_back({stranger.get(), POLLIN, 0});
    // Those that are open only: poll takes no more entries than the process may have descriptors.
    for (const UniqueFd& socket : sockets_) {
      if (socket.valid()) entries.push_back({socket.get(), POLLIN, 0});
    }
    const int num_ready = ::poll(entries.data(), entries.size(), remaining_ms(deadline));
    if (num_ready < 0 && errno != EINTR) {
      throw Error(ErrorCode::kSystem, fmt::format("poll failed: {}", std::strerror(errno)));
    }
    if (num_ready > 0) {
      look_at_joined();
      look_at_strangers();
      accept_all();
    }
    if (num_joined_ < num_ranks_ && Clock::now() >= deadline) name_absent();
  }

  void name_absent() {
    if (failure_) return;
    failure_ = absence_packet(sockets_, timeout_, fmt::format("within {} ms", timeout_.count()),
                              "Were all ranks started, on this host?");
  }

  /// Ranks that have joined have nothing to say, unless they fail or end.
  void look_at_joined() {
    for (int peer = 1; peer < num_ranks_ && !failure_; ++peer) {
      const int socket = sockets_[static_cast<std::size_t>(peer)].get();
      if (socket < 0) continue;
      Packet packet;
      const ChannelStatus status = receive_now(socket, packet);
      if (status == ChannelStatus::kNothing) continue;
      if (status == ChannelStatus::kOk && packet.kind == PacketKind::kStatus) {
        fail(packet.code, peer, fmt::format("rank {} failed: {}", peer, packet.text.data()));
      } else {
        failure_ = silence_packet(status == ChannelStatus::kClosed ? status : ChannelStatus::kMalformed, peer,
                                  Phase::kRendezvous, timeout_);
      }
    }
  }

  void look_at_strangers() {
    for (auto stranger = strangers_.begin(); stranger != strangers_.end();) {
      stranger = hear(*stranger) ? strangers_.erase(stranger) : std::next(stranger);
    }
  }

  void accept_all() {
    // Once all have come nobody is looked for: where the last has taken the last descriptor, that would fail.
    while (num_joined_ < num_ranks_) {
      UniqueFd socket = own_descriptor(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
      if (!socket.valid()) {
        const int error = errno;
        if (error == EAGAIN || error == EWOULDBLOCK || error == EINTR || error == ECONNABORTED) return;
        if (is_shortage(error) && make_room()) continue;
        fail(ErrorCode::kSystem, 0,
             fmt::format("rank 0 cannot take in another rank ({} of {} have come): accept failed: {}{}", num_joined_,
                         num_ranks_, std::strerror(error), descriptor_hint(error)));
        return;
      }
      num_accept_tries_ = 0;
      const std::optional<bool> same_user = is_same_user(socket.get());
      if (!same_user && ++num_unknown_visitors_ == kMaxUnknownVisitors) {
        fail(ErrorCode::kSystem, 0, "rank 0 cannot find out who connects to it");
        return;
      }
      // Who is of this job and was not recognised comes again.
      if (!same_user.value_or(false) || hear(socket)) continue;
      if (strangers_.size() == kMaxStrangers) strangers_.pop_front();
      strangers_.push_back(std::move(socket));
    }
  }

  bool make_room() {
    if (!strangers_.empty()) {
      strangers_.pop_front();
      return true;
    }
    if (++num_accept_tries_ >= kMaxAcceptTries || Clock::now() >= deadline_) return false;
    std::this_thread::sleep_for(kAcceptRetry);
    return true;
  }

  /// Reads who is at the other end. True when the connection was dealt with.
  bool hear(UniqueFd& socket) {
    Packet hello;
    ChannelStatus status = ChannelStatus::kNothing;
    if (const Complaint complaint = attempt([&] { status = receive_now(socket.get(), hello); })) {
      fail(complaint->code(), 0, complaint->message());
      return true;
    }
    if (status == ChannelStatus::kNothing) return false;
    const bool is_ours = status == ChannelStatus::kOk && hello.magic == kPacketMagic &&
                         hello.kind == PacketKind::kHello && hello.job_check == address_.job_check;
    if (is_ours) admit(std::move(socket), hello);
    return true;
  }

  void admit(UniqueFd socket, const Packet& hello) {
    const auto refuse = [&](ErrorCode code) {
      const Packet refusal = failure_packet(
          PacketKind::kVerdict, code, 0, Phase::kRendezvous,
          fmt::format("rank 0 refused this rank ({} of {}): its size or version differs, or the rank came twice",
                      hello.rank, hello.num_ranks));
      tell(socket, refusal);
    };
    const bool fits = hello.version == kProtocolVersion && hello.num_ranks == num_ranks_ && hello.rank >= 1 &&
                      hello.rank < num_ranks_;
    if (!fits) {
      refuse(ErrorCode::kShapeMismatch);
      if (hello.rank >= 1 && hello.rank < num_ranks_) was_told_[static_cast<std::size_t>(hello.rank)] = true;
      fail(ErrorCode::kShapeMismatch, hello.rank,
           fmt::format("rank {} has another group size or another version: rank {} came with {} ranks and protocol {}; "
                       "expected {} ranks and protocol {}. Start all ranks with the same program and size",
                       hello.rank, hello.rank, hello.num_ranks, hello.version, num_ranks_, kProtocolVersion));
      return;
    }
    UniqueFd& place = sockets_[static_cast<std::size_t>(hello.rank)];
    if (place.valid() || was_told_[static_cast<std::size_t>(hello.rank)]) return refuse(ErrorCode::kInvalidArgument);
    if (failure_) {
      tell(socket, *failure_);
      was_told_[static_cast<std::size_t>(hello.rank)] = true;
      return;
    }
    Packet welcome;
    welcome.kind = PacketKind::kWelcome;
    ChannelStatus status = ChannelStatus::kClosed;
    const Complaint complaint = attempt([&] { status = send_message(socket.get(), welcome, -1, briefly()); });
    if (complaint) fail(complaint->code(), 0, fmt::format("rank 0 cannot answer: {}", complaint->message()));
    if (status != ChannelStatus::kOk) {
      hear_last_words(socket, hello.rank);  // it may come again otherwise
      return;
    }
    place = std::move(socket);
    ++num_joined_;
  }

  /// A rank that could not wait for the answer may have said why.
  void hear_last_words(const UniqueFd& socket, int rank) {
    Packet packet;
    ChannelStatus status = ChannelStatus::kNothing;
    const Complaint complaint = attempt([&] { status = receive_now(socket.get(), packet); });
    if (complaint || status != ChannelStatus::kOk || packet.kind != PacketKind::kStatus) return;
    was_told_[static_cast<std::size_t>(rank)] = true;
    fail(packet.code, rank, fmt::format("rank {} failed: {}", rank, packet.text.data()));
  }

  /// For packets that go at once or never: the receiver's queue is empty.
  static Patience briefly() { return {.deadline = Clock::now() + kAnswerTime}; }

  /// Best effort: who cannot be told finds out by itself.
  static void tell(const UniqueFd& socket, const Packet& packet) noexcept {
    (void)attempt([&] { (void)send_message(socket.get(), packet, -1, briefly()); });
  }

  void say_farewell() {
    for (int peer = 1; peer < num_ranks_; ++peer) {
      UniqueFd& socket = sockets_[static_cast<std::size_t>(peer)];
      if (!socket.valid()) continue;
      tell(socket, *failure_);
      was_told_[static_cast<std::size_t>(peer)] = true;
      socket.reset();
    }
    spare_.reset();
    const Deadline end = std::min(deadline_, Clock::now() + kFarewell);
    while (Clock::now() < end && std::count(was_told_.begin() + 1, was_told_.end(), false) > 0) {
      if (attempt([&] { step_farewell(end); })) return;
    }
  }

  void step_farewell(Deadline end) {
    look_at_strangers();
    pollfd entry{listener_.get(), POLLIN, 0};
    const Deadline next = std::min(end, Clock::now() + (strangers_.empty() ? kFarewell : kConnectRetry));
    if (::poll(&entry, 1, remaining_ms(next)) > 0) accept_all();
  }

  MeetingAddress address_;
  int num_ranks_;
  std::chrono::milliseconds timeout_;
  Deadline deadline_;
  UniqueFd listener_;
  UniqueFd spare_;
  int num_joined_ = 1;
  int num_accept_tries_ = 0;
  int num_unknown_visitors_ = 0;
  std::vector<UniqueFd> sockets_;
  std::deque<UniqueFd> strangers_;
  std::vector<bool> was_told_;  ///< of the failure
  std::optional<Packet> failure_;
};

/// Another rank on its way to rank 0.
class Visit {
 public:
  Visit(const std::string& job, int rank, int num_ranks, std::chrono::milliseconds timeout)
      : address_(job),
        timeout_(timeout),
        deadline_(Clock::now() + timeout),
        // Rank 0 waits first and names the rank at fault; a little patience lets that answer arrive.
        patience_{.deadline = deadline_ + patience_behind_root(timeout)} {
    hello_.kind = PacketKind::kHello;
    hello_.rank = rank;
    hello_.num_ranks = num_ranks;
    hello_.job_check = address_.job_check;
  }

  UniqueFd make() {
    while (true) {
      if (UniqueFd socket = connect(); socket.valid()) {
        has_met_ = true;
        if (is_welcome(socket)) return socket;
        // Rank 0 had too many connections, or has ended: the next try will tell.
      }
      if (Clock::now() >= deadline_) throw_late();
      std::this_thread::sleep_for(kConnectRetry);
    }
  }

 private:
  [[nodiscard]] Error::Context context(int peer_rank) const {
    return {.rank = hello_.rank, .peer_rank = peer_rank, .phase = Phase::kRendezvous};
  }

  /// No socket where it is worth to try again.
  UniqueFd connect() {
    UniqueFd socket = open_socket();
    if (::connect(socket.get(), address_.get(), address_.name_bytes) != 0) {
      const int error = errno;
      const bool nobody_there = error == ECONNREFUSED || error == ENOENT;
      if (nobody_there && has_met_) {
        throw Error(ErrorCode::kPeerLost, "rank 0 exited while the ranks met; start all ranks again", context(0));
      }
      if (!nobody_there && !is_shortage(error)) {
        throw Error(ErrorCode::kSystem, fmt::format("connect failed: {}", std::strerror(error)), context(-1));
      }
      last_error_ = nobody_there ? 0 : error;
      return {};
    }
    const std::optional<bool> same_user = is_same_user(socket.get());
    if (!same_user) {
      last_error_ = errno;
      return {};
    }
    if (!*same_user) {
      throw Error(ErrorCode::kInvalidArgument, "the meeting point of this job belongs to another user", context(0));
    }
    last_error_ = 0;
    (void)send_message(socket.get(), hello_, -1, patience_);  // a rank 0 that is gone shows in the answer
    return socket;
  }

  /// False where rank 0 has closed the connection without a word. Tells rank 0 of an error of this rank.
  bool is_welcome(const UniqueFd& socket) {
    Packet answer;
    ChannelStatus status = ChannelStatus::kClosed;
    const Complaint complaint = attempt([&] { status = receive_message(socket.get(), answer, nullptr, patience_); });
    if (complaint) {
      const Packet note =
          failure_packet(PacketKind::kStatus, complaint->code(), hello_.rank, Phase::kRendezvous, complaint->message());
      (void)attempt([&] { (void)send_message(socket.get(), note, -1, patience_); });
      throw error_of(note, hello_.rank);
    }
    if (status == ChannelStatus::kClosed) return false;
    if (status == ChannelStatus::kTimedOut) {
      throw Error(ErrorCode::kTimeout,
                  fmt::format("rank 0 is there, but did not answer within {} ms", timeout_.count()), context(0));
    }
    if (status == ChannelStatus::kOk && answer.kind == PacketKind::kWelcome) return true;
    if (status == ChannelStatus::kOk && answer.kind == PacketKind::kVerdict) throw error_of(answer, hello_.rank);
    throw error_of(silence_packet(ChannelStatus::kMalformed, 0, Phase::kRendezvous, timeout_), hello_.rank);
  }

  [[noreturn]] void throw_late() const {
    if (last_error_ != 0) {
      throw Error(ErrorCode::kSystem,
                  fmt::format("cannot reach rank 0: {}{}", std::strerror(last_error_), descriptor_hint(last_error_)),
                  context(-1));
    }
    throw Error(ErrorCode::kTimeout,
                fmt::format("rank 0 did not open the meeting point within {} ms. Was it started, on this host, with "
                            "the same job name?",
                            timeout_.count()),
                context(0));
  }

  MeetingAddress address_;
  std::chrono::milliseconds timeout_;
  Deadline deadline_;
  Patience patience_;
  Packet hello_;
  bool has_met_ = false;
  int last_error_ = 0;  ///< of the last try, where it is this rank's own
};

}  // namespace

std::vector<UniqueFd> hold_meeting(const std::string& job, int num_ranks, std::chrono::milliseconds timeout) {
  return Meeting(job, num_ranks, timeout).hold();
}

UniqueFd come_to_meeting(const std::string& job, int rank, int num_ranks, std::chrono::milliseconds timeout) {
  return Visit(job, rank, num_ranks, timeout).make();
}

}  // namespace epistle
