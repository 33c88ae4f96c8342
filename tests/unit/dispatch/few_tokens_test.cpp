// What ranks tell each other of few tokens: where it lies, and how many blocks tell it. Needs no GPU: plain values.
#include "dispatch/cuda/device/few_tokens.hpp"

#include <cstdint>

#include <gtest/gtest.h>

namespace epistle {
namespace {

DeviceControl control_of(std::int32_t num_ranks, std::int32_t num_experts, std::int32_t top_k,
                         std::int64_t max_tokens) {
  return {.num_ranks = num_ranks,
          .num_experts = num_experts,
          .top_k = top_k,
          .max_tokens = max_tokens,
          .count_blocks = FewTokens::kMaxBlocks};
}

TEST(FewTokens, PartsLieBehindTheControlSectionAndDoNotOverlap) {
  for (const std::int32_t num_ranks : {1, 2, 3, 8}) {
    for (const std::int32_t num_experts : {1, 7, 256, 4096}) {
      for (const std::int32_t top_k : {1, 3, 8, 32}) {
        for (const std::int64_t max_tokens : {1, 100, 1024, 4096}) {
          const DeviceControl control = control_of(num_ranks, num_experts, top_k, max_tokens);
          const FewTokens few = FewTokens::behind(control);
          const std::int64_t ranks = num_ranks;
          const std::int64_t units = few.units.divisor();
          ASSERT_EQ(few.max_tokens, max_tokens < FewTokens::kMaxTokens ? max_tokens : FewTokens::kMaxTokens);
          ASSERT_GE(few.headers, control.num_bytes());
          ASSERT_GE(few.bits, few.headers + ranks * FewTokens::kMaxBlocks * 8);
          ASSERT_GE(few.counts, few.bits + ranks * ranks * FewTokens::kMaxWords * 8);
          // An expert has a counter at its rank, and there is one more.
          ASSERT_EQ(few.counters, control.max_local_experts() + 1);
          ASSERT_GE(few.records, few.counts + ranks * FewTokens::kMaxBlocks * few.counters * 8);
          ASSERT_GE(units * FewTokens::kExpertsPerUnit, top_k);
          const std::int64_t end = few.records + ranks * few.max_tokens * units * FewTokens::kUnitBytes;
          ASSERT_GE(few.headers + few.copy_bytes, end);
          for (const std::int64_t offset : {few.headers, few.bits, few.counts, few.records, few.copy_bytes}) {
            ASSERT_EQ(offset % 128, 0);
          }
        }
      }
    }
  }
}

TEST(FewTokens, AreNotToldWhereRanksOrExpertsAreTooMany) {
  EXPECT_EQ(FewTokens::behind(control_of(FewTokens::kMaxRanks + 1, 256, 8, 1024)).num_bytes(), 0);
  EXPECT_EQ(FewTokens::behind(control_of(1, FewTokens::kNoExpert, 8, 1024)).num_bytes(), 0);
  EXPECT_EQ(FewTokens().blocks_for(1, 16), 0);
  EXPECT_EQ(FewTokens().blocks_for(0, 16), 0);
}

TEST(FewTokens, OfEveryNumberFitTheWordsAndTheTileOfABlock) {
  const FewTokens few = FewTokens::behind(control_of(2, 256, 8, 4096));
  for (std::int64_t num_tokens = 0; num_tokens <= FewTokens::kMaxTokens; ++num_tokens) {
    for (std::int32_t max_blocks = 1; max_blocks <= FewTokens::kMaxBlocks; ++max_blocks) {
      const std::int32_t blocks = few.blocks_for(num_tokens, max_blocks);
      ASSERT_LE(blocks, max_blocks);
      if (blocks == 0) {
        // One block alone has no room for more.
        ASSERT_GT(num_tokens, max_blocks * FewTokens::kMaxPerBlock);
        continue;
      }
      const FewHeader header{.blocks = blocks,
                             .tokens_per_block = static_cast<std::int32_t>((num_tokens + blocks - 1) / blocks)};
      ASSERT_LE(header.words(), FewTokens::kMaxWords);
      ASSERT_LE(header.tokens_per_block, FewTokens::kMaxPerBlock);
      ASSERT_GE(header.blocks * header.tokens_per_block, num_tokens);
    }
    ASSERT_GT(few.blocks_for(num_tokens, FewTokens::kMaxBlocks), 0);
  }
  EXPECT_EQ(few.blocks_for(FewTokens::kMaxTokens + 1, FewTokens::kMaxBlocks), 0);
}

TEST(Divider, GivesTheWholePartOfAQuotient) {
  for (std::uint32_t divisor = 1; divisor <= 512; ++divisor) {
    const Divider by(divisor);
    ASSERT_EQ(by.divisor(), divisor);
    for (std::uint32_t dividend = 0; dividend < (1U << 20U); dividend += dividend < 5000 ? 1 : 997) {
      ASSERT_EQ(by.divide(dividend), dividend / divisor) << dividend << " / " << divisor;
    }
  }
}

TEST(FewTokens, AHeaderSaysWhatWentIn) {
  for (const bool refused : {false, true}) {
    for (const bool dispatches : {false, true}) {
      for (const std::int32_t blocks : {1, 7, 16}) {
        for (const std::int32_t tokens : {0, 1, 63, 512}) {
          const FewHeader header = FewHeader::of(
              FewHeader{.refused = refused, .dispatches = dispatches, .blocks = blocks, .tokens_per_block = tokens}
                  .word());
          EXPECT_EQ(header.refused, refused);
          EXPECT_EQ(header.dispatches, dispatches);
          EXPECT_EQ(header.blocks, blocks);
          EXPECT_EQ(header.tokens_per_block, tokens);
        }
      }
    }
  }
}

}  // namespace
}  // namespace epistle
