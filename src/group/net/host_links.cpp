#include "group/net/host_links.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "epistle/error.hpp"

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
  return failure_packet(PacketKind::kVerdict, complaint->code(), at_fault, Phase::kCreate, complaint->message());
}

}  // namespace

std::vector<UniqueFd> link_hosts(const HostTable& table, int host, UniqueFd listener, Deadline deadline) {
  const auto own = static_cast<std::size_t>(host);
  const int own_rank = leader_at(table, own);
  std::vector<UniqueFd> links(table.hosts.size());
  for (std::size_t other = 0; other < own; ++other) links[other] = visit_host(table, other, own_rank, deadline);
  Doorman doorman(std::move(listener), table.secret);
  for (std::size_t num_missing = links.size() - own - 1; num_missing > 0;) {
    std::optional<Visitor> visitor = doorman.next(deadline);
    if (!visitor) {
      for (std::size_t other = own + 1; other < links.size(); ++other) {
        if (links[other].valid()) continue;
        throw_unreachable(table, other, own_rank, ErrorCode::kTimeout, "it did not come in time");
      }
    }
    const std::optional<std::size_t> other = host_of_visitor(table, host, visitor->who);
    if (!other || links[*other].valid()) continue;
    links[*other] = std::move(visitor->socket);
    --num_missing;
  }
  return links;
}

void found_together(const std::vector<UniqueFd>& links, const HostTable& table, int host, const Complaint& complaint,
                    std::chrono::milliseconds timeout) {
  const int own_rank = leader_at(table, static_cast<std::size_t>(host));
  const auto count_link = [&](std::size_t other) { return other < links.size() && links[other].valid(); };
  Packet verdict = own_packet(complaint, own_rank);
  if (host != 0) {
    // Rank 0 waits first and names the rank at fault; a little patience lets that answer arrive.
    const Deadline deadline = Clock::now() + timeout + timeout / 8 + std::chrono::milliseconds(50);
    if (count_link(0)) {
      (void)send_packet(links[0].get(), verdict, deadline);
      const Packet answer = receive_packet(links[0], 0, timeout, deadline);
      if (!complaint) verdict = answer;
    }
  } else {
    const Deadline deadline = Clock::now() + timeout;
    for (std::size_t other = 1; other < links.size(); ++other) {
      if (!count_link(other)) continue;
      const Packet status = receive_packet(links[other], leader_at(table, other), timeout, deadline);
      if (verdict.code == ErrorCode::kOk && status.code != ErrorCode::kOk) verdict = status;
    }
    verdict.kind = PacketKind::kVerdict;
    for (std::size_t other = 1; other < links.size(); ++other) {
      if (count_link(other)) (void)send_packet(links[other].get(), verdict, Clock::now() + timeout / 8);
    }
  }
  if (complaint) throw Error(*complaint);
  if (verdict.code != ErrorCode::kOk) throw error_of(verdict, own_rank);
}

}  // namespace epistle
