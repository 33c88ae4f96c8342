// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a counter-based
// generator. A draw is a pure function of (seed, stream, rank, token, position), so every rank can make any part of a
// routing table without the parts before it, and machines agree bit for bit.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace epistle {

using PhiloxBlock = std::array<std::uint32_t, 4>;
using PhiloxKey = std::array<std::uint32_t, 2>;

// Multipliers and Weyl increments of the paper's table 2 (section 3.4).
inline constexpr std::uint64_t kPhiloxMultiplier0 = 0xD2511F53U;
inline constexpr std::uint64_t kPhiloxMultiplier1 = 0xCD9E8D57U;
inline constexpr std::uint32_t kPhiloxWeyl0 = 0x9E3779B9U;
inline constexpr std::uint32_t kPhiloxWeyl1 = 0xBB67AE85U;
inline constexpr int kPhiloxRounds = 10;
inline constexpr int kBitsPerWord = 32;

[[nodiscard]] constexpr PhiloxBlock philox4x32_10(PhiloxBlock counter, PhiloxKey key) noexcept {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const std::uint64_t product0 = kPhiloxMultiplier0 * counter[0];
    const std::uint64_t product1 = kPhiloxMultiplier1 * counter[2];
    counter = {static_cast<std::uint32_t>(product1 >> kBitsPerWord) ^ counter[1] ^ key[0],
               static_cast<std::uint32_t>(product1),
               static_cast<std::uint32_t>(product0 >> kBitsPerWord) ^ counter[3] ^ key[1],
               static_cast<std::uint32_t>(product0)};
    key[0] += kPhiloxWeyl0;
    key[1] += kPhiloxWeyl1;
  }
  return counter;
}

/// Separate uses draw from separate streams, so that one use never shifts the numbers of another. The values are part
/// of the generators' output: never renumber them.
enum class RandomStream : std::uint32_t {
  kExperts = 0,      ///< which experts a token goes to
  kWeights = 1,      ///< a token's weights
  kScores = 2,       ///< router scores of a token
  kShuffle = 3,      ///< which expert holds which place in a popularity order
  kPopularity = 4,   ///< popularity of an expert; the expert stands in the place of the token
  kTokenCounts = 5,  ///< how many tokens a rank has
};

/// Where a sequence of draws belongs. What is equal on all ranks uses rank 0.
struct RandomAddress {
  RandomStream stream = RandomStream::kExperts;
  std::uint32_t rank = 0;
  std::uint32_t token = 0;
};

/// The draws of one address. The key is the seed; the counter is {block, token, rank, stream}.
class PhiloxStream {
 public:
  PhiloxStream(std::uint64_t seed, const RandomAddress& address) noexcept
      : key_{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> kBitsPerWord)},
        counter_{0, address.token, address.rank, static_cast<std::uint32_t>(address.stream)} {}

  [[nodiscard]] std::uint32_t next_u32() noexcept {
    if (next_word_ == block_.size()) {
      block_ = philox4x32_10(counter_, key_);
      ++counter_[0];
      next_word_ = 0;
    }
    return block_[next_word_++];
  }

  [[nodiscard]] std::uint64_t next_u64() noexcept {
    const std::uint64_t low = next_u32();
    return low | (static_cast<std::uint64_t>(next_u32()) << kBitsPerWord);
  }

  /// Uniform in [0, end), without bias: numbers of just enough bits, rejected at and above `end` (less than one
  /// rejection per draw on average).
  [[nodiscard]] std::uint64_t below(std::uint64_t end) noexcept {
    if (end <= 1) return 0;
    const int num_bits = static_cast<int>(std::bit_width(end - 1));
    for (;;) {
      const std::uint64_t draw = num_bits <= kBitsPerWord ? next_u32() >> (kBitsPerWord - num_bits)
                                                          : next_u64() >> (2 * kBitsPerWord - num_bits);
      if (draw < end) return draw;
    }
  }

 private:
  PhiloxKey key_;
  PhiloxBlock counter_;
  PhiloxBlock block_{};
  std::size_t next_word_ = 4;  // of block_; 4 = none left
};

}  // namespace epistle
