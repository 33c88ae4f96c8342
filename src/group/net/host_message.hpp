// What the uplinks of two hosts say to each other: a head, and for an arrival the post and the gathered bytes behind
// it, for a change of the mask who is left out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "group/control.hpp"

namespace epistle {

enum class HostMessageKind : std::uint32_t {
  kHeartbeat = 1,
  kArrived,   ///< a rank has arrived in a step
  kDeparted,  ///< a rank has left or ended
  kReport,    ///< to rank 0's host: a rank has seen a failure
  kVerdict,   ///< from rank 0's host: the failure that counts
  kBye,       ///< nothing will come any more
  kProposal,  ///< a rank proposes a mask, or no longer does
  kMask,      ///< a mask that all its ranks have proposed: it is in force
};

struct HostMessageHead {
  HostMessageKind kind = HostMessageKind::kHeartbeat;
  std::int32_t rank = -1;
  Ticket ticket = 0;            ///< kArrived; kMask: the last step before
  std::uint32_t num_bytes = 0;  ///< of what follows
  /// kReport, kVerdict: packed. kArrived, kMask: the word of the group under the mask in force (quiet_word()).
  std::uint64_t failure = 0;
};

/// More than what follows any head has.
[[nodiscard]] std::size_t max_host_message_bytes(int num_ranks) noexcept;

/// A mask that is in force, as it travels.
struct MaskNews {
  std::uint64_t quiet = 0;  ///< quiet_word()
  std::uint64_t digest = 0;
  Ticket ticket = 0;  ///< the last step before
  std::uint32_t num_regions = 0;
  std::vector<int> masked;  ///< ascending

  [[nodiscard]] std::uint16_t number() const noexcept { return GroupFailure::unpack(quiet).mask_number; }
  [[nodiscard]] int leader() const noexcept { return GroupFailure::unpack(quiet).peer_rank; }
};

void append_message(std::string& bytes, const HostMessageHead& head);
/// What `control` holds of the arrival of `rank` in the step of `ticket`, under the mask of `quiet`.
void append_arrival(std::string& bytes, const RankControl& control, int rank, Ticket ticket, std::uint64_t quiet);
/// What `rank` proposes in that slot.
void append_proposal(std::string& bytes, const RankControl& control, int rank, std::size_t slot);
void append_mask(std::string& bytes, const MaskNews& news, int num_ranks);
/// Puts what follows the head of an arrival where the ranks of this host look for it. False where it is no arrival.
[[nodiscard]] bool take_arrival(std::string_view body, RankControl& control, Ticket ticket);
/// Likewise of a proposal.
[[nodiscard]] bool take_proposal(std::string_view body, RankControl& control);
/// Nothing where it is no mask of a group of so many ranks.
[[nodiscard]] std::optional<MaskNews> take_mask(const HostMessageHead& head, std::string_view body, int num_ranks);

}  // namespace epistle
