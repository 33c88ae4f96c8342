// What the ranks of a host share of their group: posts, gathered bytes, the barrier, and one failure. A piece for every
// rank of the group, also where that rank is on another host: its piece is then a mirror, which the uplink keeps
// (net/uplink.hpp).
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "epistle/error.hpp"

#include "group/barrier.hpp"
#include "group/call_post.hpp"
#include "group/process_id.hpp"
#include "group/shared_memory.hpp"

namespace epistle {

inline constexpr std::size_t kGatherSlotBytes = 4096;

enum class RankState : std::uint32_t {
  kAbsent,  ///< zero-filled memory
  kActive,
  kDeparted,    ///< has left the group, or has ended
  kHostLost,    ///< the connection to its host has ended; the rank that leads there is named
  kHostSilent,  ///< its host has not been heard of for long; may come back
};

/// Why a group is broken. Fits into one word, so that the first one wins.
struct GroupFailure {
  ErrorCode code = ErrorCode::kPeerLost;
  Phase phase = Phase::kNone;
  int peer_rank = -1;
  int reporter_rank = -1;
  /// How often the mask of the group was changed before. Whoever is left out finds another number than its own, and can
  /// report nothing.
  std::uint16_t mask_number = 0;

  /// False for the word of a group that is not broken.
  [[nodiscard]] bool is_failure() const noexcept { return code != ErrorCode::kOk; }
  [[nodiscard]] std::uint64_t pack() const noexcept;
  [[nodiscard]] static GroupFailure unpack(std::uint64_t packed) noexcept;
  friend bool operator==(const GroupFailure&, const GroupFailure&) = default;
};

/// The same word of a group that is not broken: who led the last change of the mask. 0 = it was never changed.
[[nodiscard]] std::uint64_t quiet_word(std::uint16_t mask_number, int leader) noexcept;

/// Of the mask behind that one. Numbers go round; 0 is the mask that was never set.
[[nodiscard]] constexpr std::uint16_t next_mask_number(std::uint16_t number) noexcept {
  constexpr std::uint16_t kLastNumber = 0xFFFF;
  return number == kLastNumber ? std::uint16_t{1} : static_cast<std::uint16_t>(number + 1);
}

/// What a rank says while the mask is changed (GroupImpl::set_mask). A retry may overwrite it while others read.
struct MaskPost {
  std::atomic<std::uint64_t> proposal;  ///< attempt << 32 | number of the mask; 0 = none
  std::atomic<std::uint64_t> digest;    ///< of the ranks to be left out
  std::atomic<std::uint32_t> ticket;    ///< the rank's last step
  std::atomic<std::uint32_t> num_regions;
  // By who leads the change, before it counts:
  std::atomic<std::uint64_t> agreed_digest;
  std::atomic<std::uint32_t> agreed_ticket;
  std::atomic<std::uint32_t> agreed_regions;
  std::atomic<std::uint32_t> agreed_number;  ///< of the mask; written last, when it does count
};

/// In every rank's piece. Two posts and two gather slots: one is written again only after all ranks have passed the
/// generation between, hence have read it.
struct RankControl {
  alignas(kCacheLineBytes) std::atomic<RankState> state;
  ProcessId process;  ///< written before `state`
  alignas(kCacheLineBytes) std::array<CallPost, 2> posts;
  std::array<std::array<std::byte, kGatherSlotBytes>, 2> gather_slots;
  alignas(kCacheLineBytes) std::array<MaskPost, 2> mask_posts;  ///< by the number of the mask, in turn
};

/// Behind rank 0's RankControl; its barrier's counters follow.
struct GroupControl {
  alignas(kCacheLineBytes)
      std::atomic<std::uint64_t> failure;  ///< the first failure anybody saw, packed; else quiet_word()
  /// The first failure that a rank of this host saw, packed, until the host of rank 0 has said which one counts.
  std::atomic<std::uint64_t> report;
  std::atomic<std::uint32_t> founded;       ///< 1 when all ranks have attached
  std::atomic<std::uint32_t> uplink_gone;   ///< 1 when nobody passes reports on any more
  std::atomic<std::uint32_t> uplink_beats;  ///< goes on as long as the uplink does
  BarrierBlock barrier;
};

/// A bit for every rank of a group, in words of shared memory: set where the rank is to be left out.
class MaskBits {
 public:
  MaskBits(std::atomic<std::uint64_t>* words, int num_ranks) noexcept : words_(words), num_ranks_(num_ranks) {}

  [[nodiscard]] static constexpr int num_words(int num_ranks) noexcept { return (num_ranks + 63) / 64; }
  void store(const std::vector<int>& masked) noexcept;
  /// Ascending.
  [[nodiscard]] std::vector<int> load() const;

 private:
  std::atomic<std::uint64_t>* words_;
  int num_ranks_;
};

/// The region of a host, seen as what it holds.
class ControlView {
 public:
  ControlView() = default;
  ControlView(SymmetricRegion region, int num_ranks) noexcept : region_(std::move(region)), num_ranks_(num_ranks) {}

  /// What a piece may take, and what is committed of the piece of `rank`: only rank 0's holds what all share. Last in
  /// every piece come the bits of two masks.
  [[nodiscard]] static std::int64_t reserved_bytes(int num_ranks) noexcept;
  [[nodiscard]] static std::int64_t committed_bytes(int rank, int num_ranks) noexcept;

  [[nodiscard]] RankControl& rank(int rank) const noexcept;
  [[nodiscard]] GroupControl& group() const noexcept;
  [[nodiscard]] Barrier barrier_of(int rank, BarrierKind kind = BarrierKind::kAtCounter) const noexcept {
    return {&group().barrier, rank, num_ranks_, kind};
  }
  [[nodiscard]] int num_ranks() const noexcept { return num_ranks_; }
  /// Beside the MaskPost of that slot: whom the rank proposes to leave out.
  [[nodiscard]] MaskBits mask_bits(int rank, std::size_t slot) const noexcept;

  /// What the word of the group says where that is not `quiet`.
  [[nodiscard]] std::optional<GroupFailure> failure(std::uint64_t quiet = 0) const noexcept;
  /// Only the first failure counts, so that every survivor names the same rank. Returns that one.
  GroupFailure decide(const GroupFailure& failure, std::uint64_t quiet = 0) const noexcept;
  /// The same whoever led the last change of the mask. A failure under another mask than the one in force changes
  /// nothing.
  [[nodiscard]] std::optional<GroupFailure> failure_of_any_mask() const noexcept;
  void decide_under_its_mask(const GroupFailure& failure) const noexcept;

 private:
  [[nodiscard]] static std::int64_t mask_offset(int rank, int num_ranks) noexcept;

  SymmetricRegion region_;
  int num_ranks_ = 0;
};

}  // namespace epistle
