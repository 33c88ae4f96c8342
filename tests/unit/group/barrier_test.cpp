// What ranks say as they arrive at a barrier, and what it tells of that.
#include "group/barrier.hpp"

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "group/call_post.hpp"

namespace epistle::testing {
namespace {

constexpr int kMostBarrierRanks = 8;

/// Memory of a barrier, zero-filled.
struct BarrierMemory {
  BarrierBlock block{};
  std::array<Arrival, kMostBarrierRanks> arrivals{};
};

/// Arrives as all ranks in turn, each with its word.
bool all_agree(std::vector<Barrier>& ranks, const std::vector<ArrivalWord>& words) {
  Ticket ticket = 0;
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    EXPECT_EQ(rank > 0 && ranks.front().passed(ticket), false);
    ticket = ranks[rank].arrive(words[rank]);
  }
  EXPECT_TRUE(ranks.front().passed(ticket));
  return ranks.front().was_unanimous(ticket);
}

class BarrierOfKind : public ::testing::TestWithParam<BarrierKind> {};

INSTANTIATE_TEST_SUITE_P(Kinds, BarrierOfKind, ::testing::Values(BarrierKind::kAtCounter, BarrierKind::kAtArrivals),
                         [](const auto& kind) {
                           return kind.param == BarrierKind::kAtCounter ? std::string("AtCounter") : "AtArrivals";
                         });

TEST_P(BarrierOfKind, TellsWhetherAllHaveSaidTheSame) {
  constexpr ArrivalWord kMost = (ArrivalWord{1} << kArrivalWordBits) - 1;
  BarrierMemory memory;
  std::vector<Barrier> ranks;
  for (int rank = 0; rank < 3; ++rank) ranks.emplace_back(&memory.block, rank, 3, GetParam());
  EXPECT_TRUE(all_agree(ranks, {7, 7, 7}));
  EXPECT_FALSE(all_agree(ranks, {0, 0, 0})) << "nothing was said";
  EXPECT_TRUE(all_agree(ranks, {kMost, kMost, kMost}));
  EXPECT_FALSE(all_agree(ranks, {1, 2, 3})) << "their mean is what one has said";
  EXPECT_FALSE(all_agree(ranks, {5, 4, 5}));
  EXPECT_FALSE(all_agree(ranks, {4, 5, 5}));
  EXPECT_FALSE(all_agree(ranks, {5, 5, 4}));
  EXPECT_FALSE(all_agree(ranks, {0, 5, 5}));
  EXPECT_FALSE(all_agree(ranks, {5, 5, 0}));
  EXPECT_FALSE(all_agree(ranks, {5, 4, 0})) << "what is left of two that differ is no word";
  EXPECT_TRUE(all_agree(ranks, {5, 5, 5}));
}

TEST_P(BarrierOfKind, TellsAllRanksTheSameWhoeverIsLast) {
  constexpr int kNumRanks = 4;
  constexpr std::uint32_t kRounds = 2000;
  const auto differs = [](std::uint32_t round) { return round % 3 == 0; };
  auto memory = std::make_unique<BarrierMemory>();
  std::atomic<int> num_wrong{0};
  std::vector<std::thread> threads;
  for (int rank = 0; rank < kNumRanks; ++rank) {
    threads.emplace_back([&, rank] {
      Barrier barrier(&memory->block, rank, kNumRanks, GetParam());
      for (std::uint32_t round = 1; round <= kRounds; ++round) {
        const bool odd_one = differs(round) && static_cast<int>(round) % kNumRanks == rank;
        const Ticket ticket = barrier.arrive(odd_one ? round + 1 : round);
        while (!barrier.passed(ticket)) barrier.sleep(ticket, 1000);
        if (barrier.was_unanimous(ticket) == differs(round)) num_wrong.fetch_add(1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_wrong.load(), 0);
}

TEST_P(BarrierOfKind, WakesWhoSleepsWhenTheLastRankArrives) {
  constexpr int kNumRanks = 3;
  constexpr std::int64_t kForeverUs = 60'000'000;
  auto memory = std::make_unique<BarrierMemory>();
  std::atomic<int> num_woken{0};
  std::vector<std::thread> threads;
  for (int rank = 1; rank < kNumRanks; ++rank) {
    threads.emplace_back([&, rank] {
      Barrier barrier(&memory->block, rank, kNumRanks, GetParam());
      const Ticket ticket = barrier.arrive();
      while (!barrier.passed(ticket)) barrier.sleep(ticket, kForeverUs);
      num_woken.fetch_add(1);
    });
  }
  while (memory->block.num_sleepers.value.load() != kNumRanks - 1) std::this_thread::yield();
  (void)Barrier(&memory->block, 0, kNumRanks, GetParam()).arrive();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_woken.load(), kNumRanks - 1);
}

TEST(BarrierAtArrivals, KnowsWhatWasSaidOfTheLastGenerationAlsoWhereOthersAreAhead) {
  BarrierMemory memory;
  std::vector<Barrier> ranks;
  for (int rank = 0; rank < 2; ++rank) ranks.emplace_back(&memory.block, rank, 2, BarrierKind::kAtArrivals);
  (void)ranks[1].arrive(3);
  const Ticket ticket = ranks[0].arrive(3);
  (void)ranks[1].arrive(8);
  EXPECT_TRUE(ranks[0].passed(ticket));
  EXPECT_TRUE(ranks[0].was_unanimous(ticket)) << "rank 1 speaks of the next one already";
  const Ticket next = ranks[0].arrive(9);
  EXPECT_TRUE(ranks[0].passed(next));
  EXPECT_FALSE(ranks[0].was_unanimous(next));
  EXPECT_FALSE(ranks[0].was_unanimous(ticket)) << "it is over";
}

TEST(CallInAWord, IsEqualOnlyForEqualCalls) {
  const Call call{.kind = CallKind::kDispatch, .buffer = 1, .subject = 3, .detail = 7, .step = 1};
  const std::uint64_t word = call.in_a_word();
  EXPECT_NE(word, 0U);
  EXPECT_LT(word, std::uint64_t{1} << kArrivalWordBits);
  EXPECT_EQ(Call(call).in_a_word(), word);
  const auto other = [&](auto change) {
    Call changed = call;
    change(changed);
    return changed.in_a_word();
  };
  EXPECT_NE(other([](Call& it) { it.kind = CallKind::kCombine; }), word);
  EXPECT_NE(other([](Call& it) { it.buffer = 2; }), word);
  EXPECT_NE(other([](Call& it) { it.subject = 4; }), word);
  EXPECT_NE(other([](Call& it) { it.detail = 8; }), word);
  EXPECT_NE(other([](Call& it) { it.step = 2; }), word);
}

TEST(CallInAWord, IsNothingWhereTheCallDoesNotFitOrRanksHaveAValueToAgreeOn) {
  const auto word_of = [](auto change) {
    Call call{.kind = CallKind::kDispatch, .buffer = 15, .subject = 1023, .detail = (1U << 30) - 1, .step = 7};
    change(call);
    return call.in_a_word();
  };
  EXPECT_NE(word_of([](Call&) {}), 0U);
  EXPECT_EQ(word_of([](Call& it) { it.buffer = 16; }), 0U);
  EXPECT_EQ(word_of([](Call& it) { it.buffer = -1; }), 0U);
  EXPECT_EQ(word_of([](Call& it) { it.subject = 1024; }), 0U);
  EXPECT_EQ(word_of([](Call& it) { it.detail = 1U << 30; }), 0U);
  EXPECT_EQ(word_of([](Call& it) { it.step = 8; }), 0U);
  EXPECT_EQ(word_of([](Call& it) { it.step = -1; }), 0U);
  EXPECT_EQ(word_of([](Call& it) { it.value = 0; }), 0U);
  EXPECT_EQ(word_of([](Call& it) { it.value = 1; }), 0U);
}

}  // namespace
}  // namespace epistle::testing
