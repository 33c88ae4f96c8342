#include "group/rendezvous_packet.hpp"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/object_bytes.hpp"

namespace epistle {

Packet failure_packet(PacketKind kind, ErrorCode code, int rank, Phase phase, std::string_view text) {
  Packet packet;
  packet.kind = kind;
  packet.code = code;
  packet.rank = rank;
  packet.phase = phase;
  const std::size_t length = std::min(text.size(), packet.text.size() - 1);
  std::copy_n(text.begin(), length, packet.text.begin());
  return packet;
}

Error error_of(const Packet& failure, int rank) {
  const std::string_view text(failure.text.data());
  if (failure.rank == rank) return {failure.code, std::string(text), {.rank = rank, .phase = failure.phase}};
  return {failure.code, std::string(text), {.rank = rank, .peer_rank = failure.rank, .phase = failure.phase}};
}

Packet silence_packet(ChannelStatus status, int rank, Phase phase, std::chrono::milliseconds timeout) {
  const bool meeting = phase == Phase::kRendezvous;
  switch (status) {
    case ChannelStatus::kTimedOut:
      return failure_packet(PacketKind::kVerdict, ErrorCode::kTimeout, rank, phase,
                            fmt::format("rank {} did not join {} within {} ms", rank,
                                        meeting ? "the group" : "the exchange of shared memory", timeout.count()));
    case ChannelStatus::kMalformed:
      return failure_packet(PacketKind::kVerdict, ErrorCode::kSystem, rank, phase,
                            fmt::format("rank {} sent what no rank of this version sends", rank));
    case ChannelStatus::kGivenUp:
      return failure_packet(PacketKind::kVerdict, ErrorCode::kSystem, rank, phase,
                            fmt::format("rank {} failed while shared memory was exchanged", rank));
    default:
      return failure_packet(PacketKind::kVerdict, ErrorCode::kPeerLost, rank, phase,
                            fmt::format("rank {} exited while {}; start all ranks again", rank,
                                        meeting ? "the ranks met" : "shared memory was exchanged"));
  }
}

Packet absence_packet(const std::vector<UniqueFd>& sockets, std::chrono::milliseconds timeout, std::string_view place,
                      std::string_view advice) {
  constexpr std::size_t kMaxNamed = 8;
  std::vector<int> absent;
  for (std::size_t peer = 1; peer < sockets.size(); ++peer) {
    if (!sockets[peer].valid()) absent.push_back(static_cast<int>(peer));
  }
  const auto named_end = absent.begin() + static_cast<std::ptrdiff_t>(std::min(absent.size(), kMaxNamed));
  return failure_packet(
      PacketKind::kVerdict, ErrorCode::kTimeout, absent.front(), Phase::kRendezvous,
      fmt::format("rank {} did not join the group within {} ms: {} of {} ranks joined {}; absent: "
                  "{}{}. {}",
                  absent.front(), timeout.count(), sockets.size() - absent.size(), sockets.size(), place,
                  fmt::join(absent.begin(), named_end, ", "), absent.size() > kMaxNamed ? ", ..." : "", advice));
}

std::optional<Packet> packet_of(std::string_view bytes) {
  std::optional<Packet> packet = object_of<Packet>(bytes);
  if (packet) packet->text.back() = '\0';
  return packet;
}

}  // namespace epistle
