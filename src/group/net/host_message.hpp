// What the uplinks of two hosts say to each other: a head, and for an arrival the post and the gathered bytes behind
// it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "group/control.hpp"

namespace epistle {

enum class HostMessageKind : std::uint32_t {
  kHeartbeat = 1,
  kArrived,   ///< a rank has arrived in a step
  kDeparted,  ///< a rank has left or ended
  kReport,    ///< to rank 0's host: a rank has seen a failure
  kVerdict,   ///< from rank 0's host: the failure that counts
  kBye,       ///< nothing will come any more
};

struct HostMessageHead {
  HostMessageKind kind = HostMessageKind::kHeartbeat;
  std::int32_t rank = -1;
  Ticket ticket = 0;            ///< kArrived
  std::uint32_t num_bytes = 0;  ///< of what follows
  std::uint64_t failure = 0;    ///< kReport, kVerdict: packed
};

/// More than any message has.
inline constexpr std::size_t kMaxHostMessageBytes = sizeof(HostMessageHead) + sizeof(CallPost) + kGatherSlotBytes + 64;

void append_message(std::string& bytes, const HostMessageHead& head);
/// What `control` holds of the arrival of `rank` in the step of `ticket`.
void append_arrival(std::string& bytes, const RankControl& control, int rank, Ticket ticket);
/// Puts what follows the head of an arrival where the ranks of this host look for it. False where it is no arrival.
[[nodiscard]] bool take_arrival(std::string_view body, RankControl& control, Ticket ticket);

}  // namespace epistle
