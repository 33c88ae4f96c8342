#include "group/control.hpp"

#include <new>

namespace epistle {
namespace {

// 20 bits hold more ranks than there are (check_num_ranks_of_hosts).
constexpr int kCodeBits = 5;
constexpr int kPhaseBits = 3;
constexpr int kRankBits = 20;
constexpr int kNumberBits = 16;
static_assert(kCodeBits + kPhaseBits + 2 * kRankBits + kNumberBits == 64);
constexpr int kPeerShift = kCodeBits + kPhaseBits;
constexpr int kReporterShift = kPeerShift + kRankBits;
constexpr int kNumberShift = kReporterShift + kRankBits;

constexpr std::int64_t kPageBytes = 4096;

std::int64_t in_pages(std::int64_t num_bytes) noexcept {
  return (num_bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
}

}  // namespace

std::uint64_t GroupFailure::pack() const noexcept {
  const auto field = [](int value, int num_bits, int shift) {
    return (static_cast<std::uint64_t>(value) & ((std::uint64_t{1} << num_bits) - 1)) << shift;
  };
  return field(static_cast<int>(code), kCodeBits, 0) | field(static_cast<int>(phase), kPhaseBits, kCodeBits) |
         field(peer_rank, kRankBits, kPeerShift) | field(reporter_rank, kRankBits, kReporterShift) |
         field(mask_number, kNumberBits, kNumberShift);
}

GroupFailure GroupFailure::unpack(std::uint64_t packed) noexcept {
  const auto field = [packed](int num_bits, int shift) {
    return static_cast<int>((packed >> shift) & ((std::uint64_t{1} << num_bits) - 1));
  };
  return {static_cast<ErrorCode>(field(kCodeBits, 0)), static_cast<Phase>(field(kPhaseBits, kCodeBits)),
          field(kRankBits, kPeerShift), field(kRankBits, kReporterShift),
          static_cast<std::uint16_t>(field(kNumberBits, kNumberShift))};
}

std::uint64_t quiet_word(std::uint16_t mask_number, int leader) noexcept {
  if (mask_number == 0) return 0;
  return GroupFailure{ErrorCode::kOk, Phase::kNone, leader, leader, mask_number}.pack();
}

std::int64_t ControlView::committed_bytes(int rank, int num_ranks) noexcept {
  if (rank != 0) return in_pages(sizeof(RankControl));
  return in_pages(static_cast<std::int64_t>(sizeof(RankControl) + sizeof(GroupControl)) +
                  static_cast<std::int64_t>(sizeof(PaddedCounter)) * num_ranks);
}

std::int64_t ControlView::reserved_bytes(int num_ranks) noexcept { return committed_bytes(0, num_ranks); }

RankControl& ControlView::rank(int rank) const noexcept {
  return *std::launder(reinterpret_cast<RankControl*>(region_.base(rank)));
}

GroupControl& ControlView::group() const noexcept {
  return *std::launder(reinterpret_cast<GroupControl*>(region_.base(0) + sizeof(RankControl)));
}

std::optional<GroupFailure> ControlView::failure(std::uint64_t quiet) const noexcept {
  // pairs with decide()
  const std::uint64_t packed = group().failure.load(std::memory_order_acquire);
  if (packed == quiet) return std::nullopt;
  return GroupFailure::unpack(packed);
}

GroupFailure ControlView::decide(const GroupFailure& failure, std::uint64_t quiet) const noexcept {
  std::uint64_t expected = quiet;
  // pairs with failure()
  if (group().failure.compare_exchange_strong(expected, failure.pack(), std::memory_order_acq_rel)) return failure;
  return GroupFailure::unpack(expected);
}

}  // namespace epistle
