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
constexpr int kBitsOfWord = 64;
constexpr std::int64_t kMaskWordBytes = sizeof(std::atomic<std::uint64_t>);

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

void MaskBits::store(const std::vector<int>& masked) noexcept {
  std::vector<std::uint64_t>::size_type next = 0;
  for (int word = 0; word < num_words(num_ranks_); ++word) {
    std::uint64_t bits = 0;
    for (; next < masked.size() && masked[next] / kBitsOfWord == word; ++next) {
      bits |= std::uint64_t{1} << (masked[next] % kBitsOfWord);
    }
    words_[word].store(bits, std::memory_order_relaxed);
  }
}

std::vector<int> MaskBits::load() const {
  std::vector<int> masked;
  for (int rank = 0; rank < num_ranks_; ++rank) {
    const std::uint64_t bits = words_[rank / kBitsOfWord].load(std::memory_order_relaxed);
    if ((bits >> (rank % kBitsOfWord) & 1) != 0) masked.push_back(rank);
  }
  return masked;
}

std::int64_t ControlView::mask_offset(int rank, int num_ranks) noexcept {
  if (rank != 0) return sizeof(RankControl);
  return static_cast<std::int64_t>(sizeof(RankControl) + sizeof(GroupControl)) +
         static_cast<std::int64_t>(sizeof(PaddedCounter)) * num_ranks;
}

std::int64_t ControlView::committed_bytes(int rank, int num_ranks) noexcept {
  return in_pages(mask_offset(rank, num_ranks) + 2 * MaskBits::num_words(num_ranks) * kMaskWordBytes);
}

MaskBits ControlView::mask_bits(int rank, std::size_t slot) const noexcept {
  std::byte* const words = region_.base(rank) + mask_offset(rank, num_ranks_) +
                           static_cast<std::int64_t>(slot) * MaskBits::num_words(num_ranks_) * kMaskWordBytes;
  return {reinterpret_cast<std::atomic<std::uint64_t>*>(words), num_ranks_};
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

std::optional<GroupFailure> ControlView::failure_of_any_mask() const noexcept {
  const GroupFailure found = GroupFailure::unpack(group().failure.load(std::memory_order_acquire));
  return found.is_failure() ? std::optional(found) : std::nullopt;
}

void ControlView::decide_under_its_mask(const GroupFailure& failure) const noexcept {
  std::uint64_t seen = group().failure.load(std::memory_order_acquire);
  for (;;) {
    const GroupFailure found = GroupFailure::unpack(seen);
    if (found.is_failure() || found.mask_number != failure.mask_number) return;
    // pairs with failure()
    if (group().failure.compare_exchange_weak(seen, failure.pack(), std::memory_order_acq_rel)) return;
  }
}

}  // namespace epistle
