#include "group/control.hpp"

#include <new>

namespace epistle {
namespace {

// Code and phase are small; 24 bits hold more ranks than there are.
constexpr int kSmallBits = 8;
constexpr int kRankBits = 24;

constexpr std::int64_t kPageBytes = 4096;

std::int64_t in_pages(std::int64_t num_bytes) noexcept {
  return (num_bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
}

}  // namespace

std::uint64_t GroupFailure::pack() const noexcept {
  const auto field = [](int value, int num_bits, int shift) {
    return (static_cast<std::uint64_t>(value) & ((std::uint64_t{1} << num_bits) - 1)) << shift;
  };
  return field(static_cast<int>(code), kSmallBits, 0) | field(static_cast<int>(phase), kSmallBits, kSmallBits) |
         field(peer_rank, kRankBits, 2 * kSmallBits) | field(reporter_rank, kRankBits, 2 * kSmallBits + kRankBits);
}

GroupFailure GroupFailure::unpack(std::uint64_t packed) noexcept {
  const auto field = [packed](int num_bits, int shift) {
    return static_cast<int>((packed >> shift) & ((std::uint64_t{1} << num_bits) - 1));
  };
  return {static_cast<ErrorCode>(field(kSmallBits, 0)), static_cast<Phase>(field(kSmallBits, kSmallBits)),
          field(kRankBits, 2 * kSmallBits), field(kRankBits, 2 * kSmallBits + kRankBits)};
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

std::optional<GroupFailure> ControlView::failure() const noexcept {
  // pairs with decide()
  const std::uint64_t packed = group().failure.load(std::memory_order_acquire);
  if (packed == 0) return std::nullopt;
  return GroupFailure::unpack(packed);
}

GroupFailure ControlView::decide(const GroupFailure& failure) const noexcept {
  std::uint64_t expected = 0;
  // pairs with failure()
  if (group().failure.compare_exchange_strong(expected, failure.pack(), std::memory_order_acq_rel)) return failure;
  return GroupFailure::unpack(expected);
}

}  // namespace epistle
