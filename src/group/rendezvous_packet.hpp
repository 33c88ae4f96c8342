// What ranks say to each other while they meet and when they hand each other descriptors.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "epistle/error.hpp"

#include "group/fd_channel.hpp"

namespace epistle {

enum class PacketKind : std::int32_t {
  kHello,    ///< a rank presents itself to rank 0
  kWelcome,  ///< rank 0 has taken it in
  kFile,     ///< a descriptor comes with it
  kStatus,   ///< what a step came to on the sending rank; from rank 0 in place of a file: why there is none
  kVerdict,  ///< what it came to on all: rank 0's last word
};

// Raised whenever the layout of shared memory or of these packets changes: ranks of different builds must not meet.
inline constexpr std::uint32_t kProtocolVersion = 5;
inline constexpr std::uint32_t kPacketMagic = 0x45504953;  // "EPIS"

struct Packet {
  std::uint32_t magic = kPacketMagic;
  std::uint32_t version = kProtocolVersion;
  PacketKind kind = PacketKind::kStatus;
  std::uint32_t transfer = 0;  ///< number of the transfer it belongs to
  std::int32_t rank = -1;      ///< the sender, the owner of the file, or the rank at fault
  std::int32_t num_ranks = 0;
  std::uint64_t job_check = 0;  ///< kHello
  ErrorCode code = ErrorCode::kOk;
  Phase phase = Phase::kNone;
  std::array<char, 256> text{};
};

/// A failure of one rank, as all ranks are told. `rank` is the one at fault.
[[nodiscard]] Packet failure_packet(PacketKind kind, ErrorCode code, int rank, Phase phase, std::string_view text);

/// The error that `rank` throws for a failure.
[[nodiscard]] Error error_of(const Packet& failure, int rank);

/// The failure of a rank that did not send (or take) what it should have.
[[nodiscard]] Packet silence_packet(ChannelStatus status, int rank, Phase phase, std::chrono::milliseconds timeout);

/// The failure of a meeting that ranks have not come to: those without a socket, by rank, rank 0 left out. `place` says
/// where or within what time the others came, `advice` what to look at.
[[nodiscard]] Packet absence_packet(const std::vector<UniqueFd>& sockets, std::chrono::milliseconds timeout,
                                    std::string_view place, std::string_view advice);

/// A packet that came over a network as text, which is closed wherever it ends; nothing where it is none.
[[nodiscard]] std::optional<Packet> packet_of(std::string_view bytes);

}  // namespace epistle
