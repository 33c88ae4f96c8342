// The layout's arithmetic: who holds which expert, how groups are padded and cut, how large records are.
#include <array>
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include "layout/dispatch_layout.hpp"

namespace epistle {
namespace {

// ---- At compile time ------------------------------------------------------------------------------------------------

constexpr ExpertPartition kSevenOverThree{7, 3};
static_assert(kSevenOverThree.num_local_experts(0) == 3 && kSevenOverThree.num_local_experts(2) == 2);
static_assert(kSevenOverThree.first_expert(1) == 3 && kSevenOverThree.rank_of(6) == 2);

constexpr LayoutParams kParams{.num_ranks = 4,
                               .num_experts = 8,
                               .top_k = 2,
                               .max_tokens = 10,
                               .row_bytes = 128,
                               .combine_row_bytes = 128,
                               .layout = OutputLayout::kExpertMajor,
                               .alignment = 16};
constexpr DispatchLayout kLayout(kParams);
static_assert(kLayout.group_rows(0) == 0 && kLayout.group_rows(1) == 16 && kLayout.group_rows(16) == 16 &&
              kLayout.group_rows(17) == 32);
static_assert(kLayout.max_output_rows() == 10 * 4 * 2 + 2 * 15);
static_assert(kLayout.max_rows_per_token() == 2 && kLayout.max_ranks_per_token() == 2 &&
              kLayout.max_other_ranks_per_token() == 2);
static_assert(sizeof(RowRecord) == 24 && sizeof(TokenRecordHeader) == 8);

constexpr std::int64_t rows_at_compile_time() {
  constexpr std::array<std::int64_t, 3> kCounts{1, 0, 33};
  std::array<std::int64_t, 4> begin{};
  return kLayout.expert_group_begins(kCounts.data(), 3, begin.data());
}
static_assert(rows_at_compile_time() == 16 + 0 + 48);

// ---- Partition ------------------------------------------------------------------------------------------------------

TEST(ExpertPartition, EveryExpertHasOneRank) {
  for (std::int32_t num_experts = 1; num_experts <= 90; ++num_experts) {
    for (std::int32_t num_ranks = 1; num_ranks <= 40; ++num_ranks) {
      const ExpertPartition partition{num_experts, num_ranks};
      std::int32_t expert = 0;
      for (std::int32_t rank = 0; rank < num_ranks; ++rank) {
        ASSERT_EQ(partition.first_expert(rank), expert);
        const std::int32_t num_local = partition.num_local_experts(rank);
        ASSERT_LE(num_local, partition.max_local_experts());
        ASSERT_GE(num_local, num_experts / num_ranks);
        ASSERT_LE(num_local, num_experts / num_ranks + 1);
        for (std::int32_t local = 0; local < num_local; ++local) ASSERT_EQ(partition.rank_of(expert + local), rank);
        expert += num_local;
      }
      ASSERT_EQ(expert, num_experts) << num_ranks << " ranks";
    }
  }
}

// ---- Rows -----------------------------------------------------------------------------------------------------------

LayoutParams params_of(OutputLayout layout, SizingMode sizing, std::int64_t capacity_rows) {
  LayoutParams params = kParams;
  params.layout = layout;
  params.sizing = sizing;
  params.capacity_rows = capacity_rows;
  return params;
}

TEST(DispatchLayout, GroupsArePaddedOrFixed) {
  const DispatchLayout token_major(params_of(OutputLayout::kTokenMajor, SizingMode::kExact, 0));
  const DispatchLayout slots(params_of(OutputLayout::kExpertBlocks, SizingMode::kExact, 9));
  for (std::int64_t count = 0; count < 100; ++count) {
    EXPECT_EQ(token_major.group_rows(count), count);
    EXPECT_EQ(slots.group_rows(count), 9);
    EXPECT_GE(kLayout.group_rows(count), count);
    EXPECT_LT(kLayout.group_rows(count), count + 16);
    EXPECT_EQ(kLayout.group_rows(count) % 16, 0);
  }
}

TEST(DispatchLayout, RowsBeyondTheCapacityHaveNoPlace) {
  const DispatchLayout exact(params_of(OutputLayout::kExpertMajor, SizingMode::kExact, 0));
  EXPECT_EQ(exact.kept_rows(1'000'000, 5, 7), 7);

  const DispatchLayout capacity(params_of(OutputLayout::kExpertMajor, SizingMode::kCapacity, 100));
  EXPECT_EQ(capacity.kept_rows(0, 0, 100), 100);
  EXPECT_EQ(capacity.kept_rows(0, 0, 101), 100);
  EXPECT_EQ(capacity.kept_rows(80, 10, 30), 10);
  EXPECT_EQ(capacity.kept_rows(80, 20, 1), 0);
  EXPECT_EQ(capacity.kept_rows(96, 50, 3), 0);
  EXPECT_EQ(capacity.kept_rows(112, 0, 3), 0);
  EXPECT_EQ(capacity.kept_rows(50, 0, 0), 0);

  // Slots: every group has its own end, wherever it begins.
  const DispatchLayout slots(params_of(OutputLayout::kExpertBlocks, SizingMode::kExact, 20));
  EXPECT_EQ(slots.kept_rows(40, 0, 25), 20);
  EXPECT_EQ(slots.kept_rows(40, 15, 25), 5);
  EXPECT_EQ(slots.kept_rows(40, 20, 25), 0);
}

TEST(DispatchLayout, CapacityHasOneSize) {
  const DispatchLayout capacity(params_of(OutputLayout::kExpertMajor, SizingMode::kCapacity, 100));
  std::vector<std::int64_t> begin(3);
  const std::array<std::int64_t, 2> few{1, 1};
  const std::array<std::int64_t, 2> many{90, 90};
  EXPECT_EQ(capacity.expert_group_begins(few.data(), 2, begin.data()), 100);
  EXPECT_EQ(begin, (std::vector<std::int64_t>{0, 16, 32}));
  EXPECT_EQ(capacity.expert_group_begins(many.data(), 2, begin.data()), 100);
  EXPECT_EQ(begin, (std::vector<std::int64_t>{0, 96, 192}));
  EXPECT_EQ(capacity.max_output_rows(), 100);
  const DispatchLayout slots(params_of(OutputLayout::kExpertBlocks, SizingMode::kCapacity, 7));
  EXPECT_EQ(slots.expert_group_begins(many.data(), 2, begin.data()), 14);
  EXPECT_EQ(slots.max_output_rows(), 14);
}

// ---- Bytes ----------------------------------------------------------------------------------------------------------

TEST(DispatchLayout, RecordsHoldWhatTheyDescribe) {
  EXPECT_EQ(kLayout.record_bytes(), 24);
  EXPECT_EQ(kLayout.weights_per_row(), 1);
  const DispatchLayout token_major(params_of(OutputLayout::kTokenMajor, SizingMode::kExact, 0));
  EXPECT_EQ(token_major.record_bytes(), 8 + 2 * (4 + 4));
  EXPECT_EQ(token_major.weights_per_row(), 2);
}

TEST(DispatchLayout, CountsHaveTwoGenerations) {
  for (const std::uint64_t generation : {0U, 1U, 2U, 7U}) {
    EXPECT_EQ(kLayout.counts_offset(generation), kLayout.counts_offset(generation + 2));
  }
  const std::int64_t counts_bytes = kLayout.counts_entries() * DispatchLayout::kCountBytes;
  EXPECT_EQ(kLayout.counts_offset(1) - kLayout.counts_offset(0), counts_bytes);
}

}  // namespace
}  // namespace epistle
