#include "group/net/gathering.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "core/complaint.hpp"
#include "core/object_bytes.hpp"
#include "core/settings.hpp"
#include "group/limits.hpp"
#include "group/net/doorman.hpp"
#include "group/net/stream.hpp"
#include "group/net/texts.hpp"
#include "group/rendezvous_packet.hpp"

namespace epistle {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int32_t kGatheringDoor = 1;
constexpr std::chrono::milliseconds kTryAgain{20};
// Of one visit: whoever answers the port may be silent, and the next port may be the right one.
constexpr std::chrono::milliseconds kMaxVisit{5000};
// How long rank 0, having failed, stays for ranks that have not come yet.
constexpr std::chrono::milliseconds kStayForLate{2000};

/// Of a rank whose socket does not do what it should.
Packet silence_of(ChannelStatus status, int rank, std::chrono::milliseconds timeout) {
  return silence_packet(status, rank, Phase::kRendezvous, timeout);
}

/// Of rank 0. The others come to `place`, which another address of this host can be in front of, but not another card.
SocketAddress listening_address(const MeetingPlace& place) {
  const std::string& interface = settings().network_interface();
  if (interface.empty()) return resolve(place.where);
  const SocketAddress named = address_of_interface(interface).with_port(place.where.port);
  std::optional<SocketAddress> asked;
  if (attempt([&] { asked = resolve(place.where); })) return named;
  const std::string found = interface_of(*asked);
  if (found == interface) return *asked;
  // A name may stand for loopback on its own host, and for an address elsewhere that leads here.
  if (found.empty() || asked->is_loopback()) return named;
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("EPISTLE_INTERFACE is '{}' ({}), but the other ranks come to {}, which is the address of {}: "
                          "name that interface, or set MASTER_ADDR to an address of {}",
                          interface, named.host_text(), asked->to_text(), found, interface),
              {.phase = Phase::kRendezvous});
}

UniqueFd listen_at_first_free(const MeetingPlace& place) {
  const SocketAddress address = listening_address(place);
  for (int idx = 0;; ++idx) {
    try {
      return listen_at(address.with_port(static_cast<std::uint16_t>(address.port() + idx)));
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kInvalidArgument || place.num_ports == 1) throw;
      if (idx + 1 < place.num_ports) continue;
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("all {} ports from {} on are in use; choose another with EPISTLE_PORT, on all ranks",
                              place.num_ports, address.to_text()),
                  {.phase = Phase::kRendezvous});
    }
  }
}

// Answers of rank 0 begin with one of these.
constexpr char kGatheredAnswer = 'g';
constexpr char kFailedAnswer = 'f';

std::string failed_answer(const Packet& packet) {
  std::string answer(1, kFailedAnswer);
  answer += object_bytes(packet);
  return answer;
}

class RootGathering final : public Gathering {
 public:
  RootGathering(const MeetingPlace& place, const std::string& secret, const GatheringRank& rank)
      : rank_(rank),
        deadline_(Clock::now() + rank.timeout),
        doorman_(listen_at_first_free(place), secret),
        sockets_(static_cast<std::size_t>(rank.num_ranks)),
        was_told_(static_cast<std::size_t>(rank.num_ranks), false) {}

  [[nodiscard]] std::vector<std::string> all_gather(const std::string& own) override {
    std::vector<std::string> texts(static_cast<std::size_t>(rank_.num_ranks));
    texts[0] = own;
    if (all_have_come_) deadline_ = Clock::now() + rank_.timeout;
    const Complaint broken = attempt([&] {
      if (std::exchange(all_have_come_, true)) {
        hear_all(texts);
      } else {
        receive_all(texts);
      }
    });
    if (broken && !failure_) {
      failure_ = failure_packet(PacketKind::kVerdict, broken->code(), 0, Phase::kRendezvous, broken->message());
    }
    const std::string answer = failure_ ? failed_answer(*failure_) : kGatheredAnswer + pack_texts(texts);
    for (int peer = 1; peer < rank_.num_ranks; ++peer) tell(peer, answer);
    if (!failure_) return texts;
    say_farewell(answer);
    throw error_of(*failure_, 0);
  }

  [[nodiscard]] std::optional<SocketAddress> own_address() const override {
    return epistle::own_address(doorman_.listener());
  }

 private:
  [[nodiscard]] UniqueFd& socket_of(int peer) { return sockets_[static_cast<std::size_t>(peer)]; }

  void receive_all(std::vector<std::string>& texts) {
    std::vector<int> joined;
    while (static_cast<int>(joined.size()) + 1 < rank_.num_ranks && !failure_) {
      std::optional<Visitor> visitor = doorman_.next(deadline_, joined);
      if (visitor) {
        const int peer = visitor->who.rank;
        if (admit(*visitor, texts)) joined.push_back(socket_of(peer).get());
      } else if (Clock::now() >= deadline_) {
        name_absent();
      } else {
        find_lost();
      }
    }
  }

  bool admit(Visitor& visitor, std::vector<std::string>& texts) {
    const Introduction& who = visitor.who;
    const bool fits = who.version == kProtocolVersion && who.num_ranks == rank_.num_ranks && who.rank >= 1 &&
                      who.rank < rank_.num_ranks && who.purpose == kGatheringDoor;
    if (!fits) {
      failure_ = failure_packet(
          PacketKind::kVerdict, ErrorCode::kShapeMismatch, who.rank, Phase::kRendezvous,
          fmt::format("rank {} came with {} ranks and protocol {}; expected {} ranks and protocol {}. Start all ranks "
                      "with the same program and size",
                      who.rank, who.num_ranks, who.version, rank_.num_ranks, kProtocolVersion));
      dismiss(visitor, failed_answer(*failure_), deadline_);
      return false;
    }
    UniqueFd& place = socket_of(who.rank);
    if (place.valid()) {
      const Packet refusal = failure_packet(PacketKind::kVerdict, ErrorCode::kInvalidArgument, 0, Phase::kRendezvous,
                                            fmt::format("rank {} came twice; the first is in", who.rank));
      (void)send_text(visitor.socket.get(), failed_answer(refusal), deadline_);
      return false;
    }
    place = std::move(visitor.socket);
    hear_from(who.rank, texts);
    return true;
  }

  void hear_from(int peer, std::vector<std::string>& texts) {
    std::string& text = texts[static_cast<std::size_t>(peer)];
    const ChannelStatus status = receive_text(socket_of(peer).get(), text, deadline_);
    if (status != ChannelStatus::kOk && !failure_) failure_ = silence_of(status, peer, rank_.timeout);
  }

  void hear_all(std::vector<std::string>& texts) {
    for (int peer = 1; peer < rank_.num_ranks && !failure_; ++peer) hear_from(peer, texts);
  }

  /// Ranks that have come have nothing to say until all have, unless they end.
  void find_lost() {
    for (int peer = 1; peer < rank_.num_ranks && !failure_; ++peer) {
      if (!socket_of(peer).valid()) continue;
      std::string unexpected;
      const ChannelStatus status = read_available(socket_of(peer).get(), unexpected, 1);
      if (status == ChannelStatus::kNothing) continue;
      failure_ = silence_of(status == ChannelStatus::kClosed ? status : ChannelStatus::kMalformed, peer, rank_.timeout);
    }
  }

  void name_absent() {
    failure_ = absence_packet(
        sockets_, rank_.timeout, fmt::format("at {}", epistle::own_address(doorman_.listener()).to_text()),
        "Were all ranks started, with the same EPISTLE_JOB_SECRET, and does the network let them through?");
  }

  /// Best effort: who cannot be told finds out by itself.
  void tell(int peer, const std::string& answer) {
    if (!socket_of(peer).valid()) return;
    const Deadline end = std::max(deadline_, Clock::now() + kStayForLate);
    (void)attempt([&] { (void)send_text(socket_of(peer).get(), answer, end); });
    was_told_[static_cast<std::size_t>(peer)] = true;
  }

  /// Whoever goes has been told why: nobody stays for it any more.
  void dismiss(const Visitor& visitor, const std::string& answer, Deadline end) {
    (void)send_text(visitor.socket.get(), answer, end);
    const int rank = visitor.who.rank;
    if (rank >= 1 && rank < rank_.num_ranks) was_told_[static_cast<std::size_t>(rank)] = true;
  }

  void say_farewell(const std::string& answer) {
    const Deadline end = std::min(deadline_, Clock::now() + kStayForLate);
    doorman_.make_room();
    while (Clock::now() < end && std::count(was_told_.begin() + 1, was_told_.end(), false) > 0) {
      const Complaint broken = attempt([&] {
        const std::optional<Visitor> late = doorman_.next(end);
        if (!late) return;
        dismiss(*late, answer, end);
      });
      if (broken) return;
    }
  }

  GatheringRank rank_;
  Deadline deadline_;
  Doorman doorman_;
  bool all_have_come_ = false;
  std::vector<UniqueFd> sockets_;
  std::vector<bool> was_told_;
  std::optional<Packet> failure_;
};

class PeerGathering final : public Gathering {
 public:
  PeerGathering(const MeetingPlace& place, const std::string& secret, const GatheringRank& rank)
      : rank_(rank), socket_(find_root(place, secret, Clock::now() + rank.timeout)) {}

  [[nodiscard]] std::vector<std::string> all_gather(const std::string& own) override {
    const Deadline patience = Clock::now() + rank_.timeout + patience_behind_root(rank_.timeout);
    std::string answer;
    ChannelStatus status = send_text(socket_.get(), own, patience);
    // Rank 0 may have said why before it closed.
    const ChannelStatus heard = receive_text(socket_.get(), answer, patience);
    if (heard != ChannelStatus::kOk) {
      status = status == ChannelStatus::kOk ? heard : status;
      throw error_of(silence_of(status, 0, rank_.timeout), rank_.rank);
    }
    if (!answer.empty() && answer.front() == kFailedAnswer) {
      if (const auto failure = packet_of(std::string_view(answer).substr(1))) throw error_of(*failure, rank_.rank);
    }
    std::optional<std::vector<std::string>> texts;
    if (!answer.empty() && answer.front() == kGatheredAnswer) {
      texts = unpack_texts(std::string_view(answer).substr(1), static_cast<std::size_t>(rank_.num_ranks));
    }
    if (!texts) throw error_of(silence_of(ChannelStatus::kMalformed, 0, rank_.timeout), rank_.rank);
    return std::move(*texts);
  }

  [[nodiscard]] std::optional<SocketAddress> own_address() const override {
    return epistle::own_address(socket_.get());
  }

 private:
  [[nodiscard]] UniqueFd find_root(const MeetingPlace& place, const std::string& secret, Deadline deadline) {
    const SocketAddress address = resolve(place.where);
    for (int idx = 0;; idx = (idx + 1) % place.num_ports) {
      const SocketAddress next = address.with_port(static_cast<std::uint16_t>(address.port() + idx));
      if (UniqueFd socket = visit(next, secret, deadline); socket.valid()) return socket;
      if (Clock::now() >= deadline) throw_not_found(address, place.num_ports);
      if (idx + 1 == place.num_ports) std::this_thread::sleep_for(kTryAgain);
    }
  }

  [[nodiscard]] UniqueFd visit(const SocketAddress& address, const std::string& secret, Deadline deadline) {
    const Deadline end = std::min(deadline, Clock::now() + kMaxVisit);
    UniqueFd socket = connect_to(address, end);
    if (!socket.valid()) {
      last_error_ = errno;
      return {};
    }
    const Introduction who{
        .version = kProtocolVersion, .rank = rank_.rank, .num_ranks = rank_.num_ranks, .purpose = kGatheringDoor};
    const ChannelStatus status = introduce(socket.get(), who, secret, end);
    if (status == ChannelStatus::kOk) return socket;
    if (status == ChannelStatus::kMalformed) stranger_ = address.to_text();
    silent_ = address.to_text();
    return {};
  }

  [[noreturn]] void throw_not_found(const SocketAddress& address, int num_ports) const {
    const std::string ports = num_ports > 1 ? fmt::format(" (or one of the {} ports behind it)", num_ports - 1) : "";
    const std::string found =
        !stranger_.empty()
            ? fmt::format(
                  "who answers at {} does not know this job's secret: is EPISTLE_JOB_SECRET the same everywhere?",
                  stranger_)
        : !silent_.empty()
            ? fmt::format("who listens at {} does not answer as rank 0 does: does the port belong to another program?",
                          silent_)
            : fmt::format("the last try: {}", std::strerror(last_error_));
    throw Error(ErrorCode::kTimeout,
                fmt::format("rank 0 was not found at {}{} within {} ms; {}. Was it started, and does the network let "
                            "these ports through?",
                            address.to_text(), ports, rank_.timeout.count(), found),
                {.rank = rank_.rank, .peer_rank = 0, .phase = Phase::kRendezvous});
  }

  GatheringRank rank_;
  int last_error_ = 0;
  std::string stranger_;  ///< where somebody answered that does not belong to this job
  std::string silent_;    ///< where somebody took the connection and did not answer
  UniqueFd socket_;
};

class CallersGathering final : public Gathering {
 public:
  CallersGathering(GatherTexts gather, int num_ranks) : gather_(std::move(gather)), num_ranks_(num_ranks) {}

  [[nodiscard]] std::vector<std::string> all_gather(const std::string& own) override {
    std::vector<std::string> texts = gather_(own);
    if (texts.size() == static_cast<std::size_t>(num_ranks_)) return texts;
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("the function that gathers texts gave {} of them for {} ranks; it must give one of every "
                            "rank, in rank order",
                            texts.size(), num_ranks_),
                {.phase = Phase::kRendezvous});
  }

  [[nodiscard]] std::optional<SocketAddress> own_address() const override { return std::nullopt; }

 private:
  GatherTexts gather_;
  int num_ranks_;
};

}  // namespace

std::unique_ptr<Gathering> gather_around_root(const MeetingPlace& place, const std::string& secret,
                                              const GatheringRank& rank) {
  if (rank.rank == 0) return std::make_unique<RootGathering>(place, secret, rank);
  return std::make_unique<PeerGathering>(place, secret, rank);
}

std::unique_ptr<Gathering> gather_by(GatherTexts gather, int num_ranks) {
  return std::make_unique<CallersGathering>(std::move(gather), num_ranks);
}

}  // namespace epistle
