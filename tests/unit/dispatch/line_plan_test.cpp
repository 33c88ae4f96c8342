// Where lines lie that `low_latency` on CUDA sends. Needs neither CUDA nor a GPU: plain values.
#include "dispatch/cuda/low_latency/line_plan.hpp"

#include <algorithm>
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

namespace epistle::cuda {
namespace {

LayoutParams decode_params(int num_ranks = 2) {
  return {.num_ranks = num_ranks,
          .num_experts = 256,
          .top_k = 8,
          .max_tokens = 128,
          .row_bytes = 7168,
          .scale_bytes = 224,
          .combine_row_bytes = 14336,
          .layout = OutputLayout::kExpertBlocks,
          .sizing = SizingMode::kCapacity,
          .capacity_rows = std::int64_t{128} * num_ranks};
}

LinePlan plan_of(const LayoutParams& params) { return plan_lines(DispatchLayout(params)); }

TEST(Lines, AreAsManyAsTheirPayloadAsksFor) {
  for (std::int64_t num_bytes = 0; num_bytes <= 4096; num_bytes += 8) {
    const std::int64_t units = (num_bytes + kUnitBytes - 1) / kUnitBytes;
    // The last unit of fifteen lies half in one line and half in the next; all others lie whole in a line of seven.
    const std::int64_t pairs = units / kPairUnits;
    const std::int64_t rest = units % kPairUnits;
    EXPECT_EQ(lines_of(num_bytes), 2 * pairs + (rest + kBlockUnits - 1) / kBlockUnits) << num_bytes;
    EXPECT_EQ(block_lines_of(num_bytes), (units + kBlockUnits - 1) / kBlockUnits) << num_bytes;
    EXPECT_GE(lines_of(num_bytes) * kLinePayloadBytes, num_bytes);
  }
}

TEST(RankFinder, FindsTheRankOfEveryExpert) {
  for (const int num_ranks : {1, 2, 3, 7, 8, 16, 31, 72}) {
    for (int num_experts = 1; num_experts <= kMaxLineExperts; num_experts += num_experts < 300 ? 1 : 97) {
      const ExpertPartition partition{num_experts, num_ranks};
      const RankFinder finder(partition);
      for (int e = 0; e < num_experts; ++e) {
        ASSERT_EQ(finder.rank_of(e), partition.rank_of(e)) << e << " of " << num_experts << " on " << num_ranks;
      }
    }
  }
}

TEST(LineDivisor, DividesExactlyAsFarAsItSays) {
  for (const std::int64_t divisor : {1, 2, 3, 7, 9, 15, 16, 255, 300, 4096, 65537}) {
    const LineDivisor by(static_cast<std::int32_t>(divisor));
    std::int64_t largest = (std::int64_t{1} << 31) - 1;
    if (divisor > 1) largest = std::min(largest, (std::int64_t{1} << 32) / divisor - 1);
    ASSERT_TRUE(LineDivisor::is_exact_up_to(largest, divisor));
    for (std::int64_t step = 0; step < 20000; ++step) {
      for (const std::int64_t number : {step, largest - step, largest / divisor * divisor - step, largest / 3 + step}) {
        if (number < 0 || number > largest) continue;
        ASSERT_EQ(by.quotient(static_cast<std::int32_t>(number)), number / divisor) << number << " / " << divisor;
      }
    }
  }
  EXPECT_FALSE(LineDivisor::is_exact_up_to(std::int64_t{1} << 32, 2));
}

TEST(LinePlan, LeavesToOthersWhatWarpsCouldNotCount) {
  LayoutParams params = decode_params(72);
  params.max_tokens = 1 << 20;
  params.combine_row_bytes = 1 << 20;
  EXPECT_FALSE(plan_of(params).combines);
  EXPECT_TRUE(plan_of(decode_params(72)).combines);
}

TEST(LinePlan, HasRoomForEverySlotOfBothSetsAndNoneTwice) {
  for (const int num_ranks : {1, 2, 3, 8}) {
    for (const bool quantises : {false, true}) {
      LayoutParams params = decode_params(num_ranks);
      params.max_tokens = 5;
      params.quantises = quantises;
      const LinePlan lines = plan_of(params);
      ASSERT_TRUE(lines.routes);
      struct Range {
        std::int64_t begin;
        std::int64_t end;
      };
      std::vector<Range> ranges;
      for (const std::uint32_t epoch : {6U, 7U}) {
        for (int source = 0; source < num_ranks; ++source) {
          const std::int64_t counts = lines.counts_offset(epoch, source);
          ranges.push_back({counts, counts + std::int64_t{lines.num_columns} * 8});
          for (int pair = 0; pair < params.max_tokens; ++pair) {
            const std::int64_t slot = lines.slot_offset(epoch, source, pair);
            EXPECT_EQ(slot % kLineBytes, 0);
            ranges.push_back({slot, slot + lines.slot_bytes});
          }
        }
      }
      std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
      for (std::size_t idx = 1; idx < ranges.size(); ++idx) EXPECT_LE(ranges[idx - 1].end, ranges[idx].begin);
      EXPECT_LE(ranges.back().end, lines.dispatch_bytes());
      EXPECT_EQ(lines.slot_offset(6, 0, 1), lines.slot_offset(8, 0, 1)) << "the same set two calls later";
    }
  }
}

TEST(LinePlan, CombineHasASlotForEveryOtherRankOrEveryExpert) {
  LayoutParams params = decode_params(4);
  LinePlan lines = plan_of(params);
  EXPECT_EQ(lines.combine_slots, params.max_tokens * 3);
  EXPECT_EQ(lines.combine_slot_offset(1, lines.combine_slots - 1) + lines.combine_lines * kLineBytes,
            lines.combine_bytes());
  params.order = SumOrder::kFlat;
  lines = plan_of(params);
  EXPECT_EQ(lines.combine_slots, params.max_tokens * params.top_k);
  EXPECT_EQ(plan_of(decode_params(1)).combine_slots, 0) << "nothing comes back from elsewhere";
}

TEST(LinePlan, RoutesOnlyWhereNothingCanBeDropped) {
  EXPECT_TRUE(plan_of(decode_params()).routes);
  LayoutParams params = decode_params();
  --params.capacity_rows;
  EXPECT_FALSE(plan_of(params).routes) << "a block too small";
  params = decode_params();
  params.sizing = SizingMode::kExact;
  EXPECT_FALSE(plan_of(params).routes) << "the host waits for counts";
  params = decode_params();
  params.layout = OutputLayout::kTokenMajor;
  params.capacity_rows = 255;
  EXPECT_FALSE(plan_of(params).routes);
  params.capacity_rows = 256;
  EXPECT_TRUE(plan_of(params).routes);
  params.layout = OutputLayout::kExpertMajor;
  params.alignment = 16;
  params.capacity_rows = std::int64_t{256} * 8 + std::int64_t{128} * 15;
  EXPECT_TRUE(plan_of(params).routes);
  --params.capacity_rows;
  EXPECT_FALSE(plan_of(params).routes) << "padding of all experts counts";
}

TEST(LinePlan, RoutesUpToWhatABlockReads) {
  LayoutParams params = decode_params();
  params.max_tokens = kMaxLineEntries / params.top_k;
  params.capacity_rows = params.max_tokens * params.num_ranks;
  EXPECT_TRUE(plan_of(params).routes);
  ++params.max_tokens;
  params.capacity_rows = params.max_tokens * params.num_ranks;
  EXPECT_FALSE(plan_of(params).routes);
  EXPECT_EQ(plan_of(params).dispatch_bytes(), 0) << "no room is taken for lines that are never sent";
}

}  // namespace
}  // namespace epistle::cuda
