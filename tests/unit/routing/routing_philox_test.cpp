#include <array>
#include <set>

#include <gtest/gtest.h>

#include "routing/philox.hpp"

namespace epistle {
namespace {

// The three vectors that Random123 publishes for philox4x32 10 (its tests/kat_vectors).
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox4x32_10({0, 0, 0, 0}, {0, 0}), (PhiloxBlock{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32_10({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (PhiloxBlock{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (PhiloxBlock{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, StreamReadsBlocksInOrder) {
  constexpr std::uint64_t kSeed = 0x299f31d0a4093822;
  PhiloxStream random(kSeed, {.stream = RandomStream::kShuffle, .rank = 7, .token = 9});
  const auto stream = static_cast<std::uint32_t>(RandomStream::kShuffle);
  for (std::uint32_t block_idx = 0; block_idx < 3; ++block_idx) {
    const PhiloxBlock block = philox4x32_10({block_idx, 9, 7, stream}, {0xa4093822, 0x299f31d0});
    for (const std::uint32_t word : block) EXPECT_EQ(random.next_u32(), word);
  }
}

TEST(Philox, EveryPartOfTheAddressMatters) {
  const std::set<std::uint64_t> first_draws = {
      PhiloxStream(1, {.stream = RandomStream::kExperts, .rank = 0, .token = 0}).next_u64(),
      PhiloxStream(2, {.stream = RandomStream::kExperts, .rank = 0, .token = 0}).next_u64(),
      PhiloxStream(1ULL << 32, {.stream = RandomStream::kExperts, .rank = 0, .token = 0}).next_u64(),
      PhiloxStream(1, {.stream = RandomStream::kWeights, .rank = 0, .token = 0}).next_u64(),
      PhiloxStream(1, {.stream = RandomStream::kExperts, .rank = 1, .token = 0}).next_u64(),
      PhiloxStream(1, {.stream = RandomStream::kExperts, .rank = 0, .token = 1}).next_u64()};
  EXPECT_EQ(first_draws.size(), 6U);
}

TEST(Philox, BelowStaysBelowAndReachesAll) {
  PhiloxStream random(1, {});
  EXPECT_EQ(random.below(0), 0U);
  EXPECT_EQ(random.below(1), 0U);
  for (const std::uint64_t end : {2U, 3U, 5U, 8U, 9U}) {
    std::set<std::uint64_t> seen;
    for (int draw = 0; draw < 1000; ++draw) {
      const std::uint64_t value = random.below(end);
      ASSERT_LT(value, end);
      seen.insert(value);
    }
    EXPECT_EQ(seen.size(), end);
  }
  constexpr std::uint64_t kWide = (std::uint64_t{1} << 40) + 1;
  bool above_32_bits = false;
  for (int draw = 0; draw < 1000; ++draw) {
    const std::uint64_t value = random.below(kWide);
    ASSERT_LT(value, kWide);
    above_32_bits = above_32_bits || value > 0xffffffff;
  }
  EXPECT_TRUE(above_32_bits);
}

TEST(Philox, BelowIsUniform) {
  constexpr std::size_t kEnd = 6;
  constexpr int kDraws = 60000;
  std::array<int, kEnd> counts{};
  PhiloxStream random(3, {});
  for (int draw = 0; draw < kDraws; ++draw) ++counts.at(random.below(kEnd));
  // Five standard deviations of a binomial count.
  for (const int count : counts) EXPECT_NEAR(count, static_cast<double>(kDraws) / kEnd, 460);
}

}  // namespace
}  // namespace epistle
