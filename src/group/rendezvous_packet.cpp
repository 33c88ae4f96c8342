#include "group/rendezvous_packet.hpp"

#include <algorithm>
#include <string_view>

#include <fmt/format.h>

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

}  // namespace epistle
