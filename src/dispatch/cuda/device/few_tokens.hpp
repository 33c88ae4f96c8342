// What ranks tell each other in prepare where all of them have few tokens: which tokens go where, not how many, and
// what each of them brings along. So a receiver finds the places itself, and one exchange does where counts first and
// records afterwards take two. Part of the control section, behind DeviceControl: plain values, usable from host and
// device code.
//
// Nobody waits until the others have read what it told them: there are several copies, by the last bits of the epoch.
// No rank is ever two calls ahead of another; and where the ranks do not agree on a dispatch, one that follows its
// prepare closely may be given up by the others while that prepare still reads. So it takes three.
#pragma once

#include <cstdint>

#include "dispatch/cuda/device/device_control.hpp"

namespace epistle {

/// Divides by the same number often. Exact where a dividend times the divisor is below 2^32.
class Divider {
 public:
  constexpr Divider() = default;
  EPISTLE_HOST_DEVICE constexpr explicit Divider(std::uint32_t divisor) noexcept
      : divisor_(divisor), reciprocal_(divisor > 1 ? 0xffffffffU / divisor + 1 : 0) {}

  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::uint32_t divisor() const noexcept { return divisor_; }
  /// The dividend itself where the divisor is 0.
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::uint32_t divide(std::uint32_t dividend) const noexcept {
    return divisor_ > 1 ? static_cast<std::uint32_t>((std::uint64_t{dividend} * reciprocal_) >> 32U) : dividend;
  }

 private:
  std::uint32_t divisor_ = 0;
  std::uint32_t reciprocal_ = 0;
};

struct FewTokens {
  static constexpr std::uint32_t kCopies = 4;       ///< a power of two, so that epochs may wrap
  static constexpr std::int32_t kMaxTokens = 1024;  ///< of a rank
  static constexpr std::int32_t kMaxRanks = 8;
  static constexpr std::int32_t kMaxBlocks = 16;  ///< of a rank's prepare
  /// Words of a bit for every token; each block begins one of its own.
  static constexpr std::int32_t kMaxWords = 32;
  static constexpr std::int32_t kNoExpert = 0xffff;  ///< in a record; experts are counted from the receiver's first

  /// A record is made of units of 16 bytes: the epoch, two experts, their weights. Each is its own signal.
  static constexpr std::int64_t kUnitBytes = 16;
  static constexpr std::int32_t kExpertsPerUnit = 2;

  std::int32_t max_tokens = 0;  ///< of a rank; 0: there is no such exchange
  Divider units;                ///< of a record
  std::int32_t counters = 0;    ///< of a block: one for each of the receiver's experts, and one more
  // Offsets in bytes, of the first copy:
  std::int64_t headers = 0;     ///< uint64 [num_ranks (source), kMaxBlocks]
  std::int64_t bits = 0;        ///< uint64 [num_ranks (source), num_ranks (destination), kMaxWords]
  std::int64_t counts = 0;      ///< uint64 [num_ranks (source), kMaxBlocks, counters]
  std::int64_t records = 0;     ///< [num_ranks (source), max_tokens, units] units
  std::int64_t copy_bytes = 0;  ///< from one copy to the next

  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int64_t num_bytes() const noexcept { return kCopies * copy_bytes; }

  /// Behind a control section. Nothing where the ranks, or the experts of one, are too many.
  [[nodiscard]] static constexpr FewTokens behind(const DeviceControl& control) noexcept {
    FewTokens few;
    if (control.num_ranks > kMaxRanks || control.max_local_experts() >= kNoExpert || control.max_tokens < 1) return few;
    few.max_tokens = static_cast<std::int32_t>(control.max_tokens < kMaxTokens ? control.max_tokens : kMaxTokens);
    few.units = Divider(static_cast<std::uint32_t>((control.top_k + kExpertsPerUnit - 1) / kExpertsPerUnit));
    few.counters = control.max_local_experts() + 1;
    const std::int64_t ranks = control.num_ranks;
    few.headers = control.num_bytes();
    few.bits = few.headers + aligned(ranks * kMaxBlocks * DeviceControl::kSignalBytes);
    few.counts = few.bits + aligned(ranks * ranks * kMaxWords * DeviceControl::kSignalBytes);
    few.records = few.counts + aligned(ranks * kMaxBlocks * few.counters * DeviceControl::kSignalBytes);
    few.copy_bytes = few.records + aligned(ranks * few.max_tokens * few.units.divisor() * kUnitBytes) - few.headers;
    return few;
  }

  /// Blocks that place `num_tokens`, of at most so many; 0 where their words would not fit.
  [[nodiscard]] constexpr std::int32_t blocks_for(std::int64_t num_tokens, std::int32_t max_blocks) const noexcept {
    if (max_tokens == 0 || num_tokens > max_tokens) return 0;
    for (std::int32_t blocks = max_blocks < kMaxBlocks ? max_blocks : kMaxBlocks; blocks > 0; --blocks) {
      const std::int64_t per_block = (num_tokens + blocks - 1) / blocks;
      if (per_block <= kMaxPerBlock && blocks * words_of(per_block) <= kMaxWords) return blocks;
    }
    return 0;
  }
  [[nodiscard]] EPISTLE_HOST_DEVICE static constexpr std::int32_t words_of(std::int64_t num_tokens) noexcept {
    return static_cast<std::int32_t>((num_tokens + kWordBits - 1) / kWordBits);
  }

  static constexpr std::int32_t kWordBits = 32;
  static constexpr std::int32_t kMaxPerBlock = 512;

 private:
  [[nodiscard]] EPISTLE_HOST_DEVICE static constexpr std::int64_t aligned(std::int64_t bytes) noexcept {
    return (bytes + 127) / 128 * 128;
  }
};

/// What a block says ahead of its tokens; above it stands the epoch.
struct FewHeader {
  bool refused = false;               ///< an id of the block is bad
  bool dispatches = false;            ///< of a call that dispatches as well
  std::int32_t blocks = 0;            ///< of this rank
  std::int32_t tokens_per_block = 0;  ///< the last one may have fewer

  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::uint32_t word() const noexcept {
    return (refused ? 1U : 0U) | (dispatches ? 2U : 0U) | (static_cast<std::uint32_t>(blocks) << kBlocksShift) |
           (static_cast<std::uint32_t>(tokens_per_block) << kTokensShift);
  }
  [[nodiscard]] EPISTLE_HOST_DEVICE static constexpr FewHeader of(std::uint32_t word) noexcept {
    return {(word & 1U) != 0, (word & 2U) != 0, static_cast<std::int32_t>((word >> kBlocksShift) & 0xffU),
            static_cast<std::int32_t>(word >> kTokensShift)};
  }
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t words_per_block() const noexcept {
    return FewTokens::words_of(tokens_per_block);
  }
  [[nodiscard]] EPISTLE_HOST_DEVICE constexpr std::int32_t words() const noexcept { return blocks * words_per_block(); }

 private:
  static constexpr int kBlocksShift = 8;
  static constexpr int kTokensShift = 16;
};

}  // namespace epistle
