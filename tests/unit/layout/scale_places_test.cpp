// Where the scales of received rows lie: every (row, word) has a place of its own, within what is allocated.
#include "layout/scale_places.hpp"

#include <cstdint>
#include <set>

#include <gtest/gtest.h>

#include "layout/dispatch_layout.hpp"

namespace epistle {
namespace {

void expect_places_of_their_own(const ScalePlaces& places, std::int64_t num_rows) {
  std::set<std::int64_t> taken;
  for (std::int64_t row = 0; row < num_rows; ++row) {
    for (std::int64_t word = 0; word < places.num_words(); ++word) {
      const std::int64_t offset = places.offset(row, word);
      EXPECT_EQ(offset % ScalePlaces::kWordBytes, 0);
      EXPECT_GE(offset, 0);
      EXPECT_LE(offset + ScalePlaces::kWordBytes, places.num_bytes());
      EXPECT_TRUE(taken.insert(offset).second) << "row " << row << ", word " << word;
    }
  }
}

TEST(ScalePlaces, InRowsTheyLieOneBehindTheOther) {
  const ScalePlaces places(ScaleOrder::kRows, 12, 5, 0);
  EXPECT_FALSE(places.in_columns());
  EXPECT_EQ(places.offset(3, 2), 3 * 12 + 2 * 4);
  EXPECT_EQ(places.num_bytes(), 60);
  expect_places_of_their_own(places, 5);
  // Opaque bytes need not be whole words.
  EXPECT_EQ(ScalePlaces(ScaleOrder::kRows, 7, 5, 0).offset(4, 0), 28);
  EXPECT_EQ(ScalePlaces(ScaleOrder::kRows, 7, 5, 0).num_bytes(), 35);
}

TEST(ScalePlaces, InColumnsEachIsFilledUpToSixteenBytes) {
  const ScalePlaces places(ScaleOrder::kColumns, 12, 5, 0);
  EXPECT_TRUE(places.in_columns());
  EXPECT_EQ(places.num_words(), 3);
  EXPECT_EQ(places.column_stride(), 8);
  EXPECT_EQ(places.block_stride(), 0);
  EXPECT_EQ(places.offset(3, 2), (2 * 8 + 3) * 4);
  EXPECT_EQ(places.num_bytes(), 3 * 8 * 4);
  expect_places_of_their_own(places, 5);
}

TEST(ScalePlaces, EveryExpertBlockIsAMatrixOfItsOwn) {
  constexpr std::int64_t kRowsPerExpert = 6;
  LayoutParams params;
  params.layout = OutputLayout::kExpertBlocks;
  params.capacity_rows = kRowsPerExpert;
  params.scale_bytes = 8;
  params.scale_order = ScaleOrder::kColumns;
  const ScalePlaces places = DispatchLayout(params).scale_places(3 * kRowsPerExpert);
  EXPECT_EQ(places.column_stride(), 8);
  EXPECT_EQ(places.block_stride(), 2 * 8);
  EXPECT_EQ(places.offset(kRowsPerExpert + 1, 1), (16 + 8 + 1) * 4);
  EXPECT_EQ(places.num_bytes(), 3 * 2 * 8 * 4);
  expect_places_of_their_own(places, 3 * kRowsPerExpert);
}

TEST(ScalePlaces, OfNoRowsTakeNothing) {
  EXPECT_EQ(ScalePlaces(ScaleOrder::kColumns, 12, 0, 0).num_bytes(), 0);
  EXPECT_TRUE(ScalePlaces(ScaleOrder::kColumns, 12, 0, 0).in_columns());
  EXPECT_EQ(ScalePlaces(ScaleOrder::kColumns, 12, 0, 4).num_bytes(), 0);
}

}  // namespace
}  // namespace epistle
