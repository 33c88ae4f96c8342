#include "group/net/host_links.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "core/complaint.hpp"
#include "core/object_bytes.hpp"
#include "group/net/doorman.hpp"
#include "group/net/stream.hpp"
#include "group/rendezvous_packet.hpp"

namespace epistle {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int32_t kHostDoor = 2;

int leader_at(const HostTable& table, std::size_t host) { return table.hosts[host].ranks.front(); }

[[noreturn]] void throw_unreachable(const HostTable& table, std::size_t other, int own_rank, ErrorCode code,
                                    const std::string& why) {
  const HostEntry& host = table.hosts[other];
  throw Error(code,
              fmt::format("rank {}, which leads on host {}, cannot be reached{}: {}; does the network let connections "
                          "between the hosts through?",
                          leader_at(table, other), host.name, host.address.empty() ? "" : " at " + host.address, why),
              {.rank = own_rank, .peer_rank = leader_at(table, other), .phase = Phase::kCreate});
}

UniqueFd visit_host(const HostTable& table, std::size_t other, int own_rank, Deadline deadline) {
  UniqueFd socket = connect_to(resolve(parse_host_and_port(table.hosts[other].address)), deadline);
  if (!socket.valid()) {
    const int error = errno;
    throw_unreachable(table, other, own_rank, error == ETIMEDOUT ? ErrorCode::kTimeout : ErrorCode::kPeerLost,
                      std::strerror(error));
  }
  const Introduction who{.version = kProtocolVersion,
                         .rank = own_rank,
                         .num_ranks = static_cast<std::int32_t>(table.host_of.size()),
                         .purpose = kHostDoor};
  const ChannelStatus status = introduce(socket.get(), who, table.secret, deadline);
  if (status == ChannelStatus::kOk) return socket;
  throw_unreachable(table, other, own_rank,
                    status == ChannelStatus::kTimedOut ? ErrorCode::kTimeout : ErrorCode::kPeerLost,
                    status == ChannelStatus::kTimedOut ? "it did not answer in time" : "it has closed the connection");
}

/// The host that a visitor leads, if it may come to `host`.
std::optional<std::size_t> host_of_visitor(const HostTable& table, int host, const Introduction& who) {
  const int num_ranks = static_cast<int>(table.host_of.size());
  if (who.purpose != kHostDoor || who.version != kProtocolVersion || who.num_ranks != num_ranks) return std::nullopt;
  if (who.rank < 0 || who.rank >= num_ranks || table.leader_of(who.rank) != who.rank) return std::nullopt;
  const int other = table.host_of[static_cast<std::size_t>(who.rank)];
  if (other <= host) return std::nullopt;
  return static_cast<std::size_t>(other);
}

ChannelStatus send_packet(int socket, const Packet& packet, Deadline deadline) {
  return send_text(socket, object_bytes(packet), deadline);
}

Packet receive_packet(const UniqueFd& link, int sender, std::chrono::milliseconds timeout, Deadline deadline) {
  std::string text;
  const ChannelStatus status = receive_text(link.get(), text, deadline);
  if (status != ChannelStatus::kOk) return silence_packet(status, sender, Phase::kCreate, timeout);
  return packet_of(text).value_or(silence_packet(ChannelStatus::kMalformed, sender, Phase::kCreate, timeout));
}

Packet own_packet(const Complaint& complaint, int leader) {
  Packet packet;
  packet.rank = leader;
  if (!complaint) return packet;
  const int at_fault = complaint->context().peer_rank >= 0 ? complaint->context().peer_rank : leader;
  packet = failure_packet(PacketKind::kVerdict, complaint->code(), at_fault, Phase::kCreate, complaint->message());
  return packet;
}

/// What only follows from the failure of a host that another one has lost for it.
bool is_consequence(const Packet& packet, const HostTable& table) {
  const bool is_loss = packet.code == ErrorCode::kPeerLost || packet.code == ErrorCode::kTimeout;
  return is_loss && packet.rank >= 0 && packet.rank < static_cast<int>(table.host_of.size()) &&
         table.leader_of(packet.rank) == packet.rank;
}

/// Whether `other` says more of why the group does not come to be.
bool is_better(const Packet& other, const Packet& known, const HostTable& table) {
  if (other.code == ErrorCode::kOk) return false;
  return known.code == ErrorCode::kOk || (is_consequence(known, table) && !is_consequence(other, table));
}

/// Hosts behind this one come here.
void take_in_hosts(Doorman& doorman, const HostTable& table, int host, Deadline deadline,
                   std::vector<UniqueFd>& links) {
  const auto own = static_cast<std::size_t>(host);
  for (std::size_t num_missing = links.size() - own - 1; num_missing > 0;) {
    std::optional<Visitor> visitor = doorman.next(deadline);
    for (std::size_t other = own + 1; !visitor && other < links.size(); ++other) {
      if (links[other].valid()) continue;
      throw_unreachable(table, other, leader_at(table, own), ErrorCode::kTimeout, "it did not come in time");
    }
    const std::optional<std::size_t> other = host_of_visitor(table, host, visitor->who);
    if (!other || links[*other].valid()) continue;
    links[*other] = std::move(visitor->socket);
    --num_missing;
  }
}

/// Of rank 0's host, which nobody hears a verdict from otherwise: one after the other, for want of descriptors.
void dismiss_late_hosts(Doorman& doorman, const HostTable& table, const Error& why, Deadline deadline,
                        const std::vector<UniqueFd>& links) {
  constexpr std::chrono::milliseconds kStayForLateHosts{2000};
  const Deadline end = std::min(deadline, Clock::now() + kStayForLateHosts);
  auto num_missing = std::count_if(links.begin() + 1, links.end(), [](const UniqueFd& link) { return !link.valid(); });
  doorman.make_room();
  (void)attempt([&] {
    while (num_missing > 0) {
      const std::optional<Visitor> visitor = doorman.next(end);
      if (!visitor) return;
      if (!host_of_visitor(table, 0, visitor->who)) continue;
      (void)send_packet(visitor->socket.get(), own_packet(why, leader_at(table, 0)), end);
      --num_missing;
    }
  });
}

}  // namespace

void link_hosts(const HostTable& table, int host, UniqueFd listener, Deadline deadline, std::vector<UniqueFd>& links) {
  const auto own = static_cast<std::size_t>(host);
  links.resize(table.hosts.size());
  const auto visit = [&](std::size_t other) {
    links[other] = visit_host(table, other, leader_at(table, own), deadline);
  };
  const Complaint complaint = attempt([&] {
    for (std::size_t other = 0; other < own; ++other) visit(other);
    Doorman doorman(std::move(listener), table.secret);
    const Complaint turned_away = attempt([&] { take_in_hosts(doorman, table, host, deadline, links); });
    if (!turned_away) return;
    if (host == 0) dismiss_late_hosts(doorman, table, *turned_away, deadline, links);
    throw Error(*turned_away);
  });
  if (!complaint) return;
  // Where descriptors have run out: nobody needs to come here any more, and rank 0's host is to hear of it.
  listener.reset();
  const bool lacks_root = host != 0 && !links[0].valid() && complaint->code() == ErrorCode::kSystem;
  if (lacks_root) (void)attempt([&] { visit(0); });
  throw Error(*complaint);
}

void found_together(const std::vector<UniqueFd>& links, const HostTable& table, int host, const Complaint& complaint,
                    std::chrono::milliseconds timeout) {
  const int own_rank = leader_at(table, static_cast<std::size_t>(host));
  const auto is_linked = [&](std::size_t other) { return other < links.size() && links[other].valid(); };
  Packet verdict = own_packet(complaint, own_rank);
  if (host != 0) {
    // Rank 0 waits first and names the rank at fault; a little patience lets that answer arrive.
    const Deadline deadline = Clock::now() + timeout + timeout / 8 + std::chrono::milliseconds(50);
    if (is_linked(0)) {
      (void)send_packet(links[0].get(), verdict, deadline);
      const Packet answer = receive_packet(links[0], 0, timeout, deadline);
      if (answer.kind == PacketKind::kVerdict && is_better(answer, verdict, table)) verdict = answer;
    }
  } else {
    const Deadline deadline = Clock::now() + timeout;
    for (std::size_t other = 1; other < links.size(); ++other) {
      if (!is_linked(other)) continue;
      const Packet status = receive_packet(links[other], leader_at(table, other), timeout, deadline);
      if (is_better(status, verdict, table)) verdict = status;
    }
    verdict.kind = PacketKind::kVerdict;
    for (std::size_t other = 1; other < links.size(); ++other) {
      if (is_linked(other)) (void)send_packet(links[other].get(), verdict, Clock::now() + timeout / 8);
    }
  }
  if (verdict.code == ErrorCode::kOk) return;
  if (complaint && complaint->code() == verdict.code && own_packet(complaint, own_rank).rank == verdict.rank) {
    throw Error(*complaint);
  }
  throw error_of(verdict, own_rank);
}

}  // namespace epistle
