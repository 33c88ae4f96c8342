// Tables of slots are refused before they are made where numbers make none.
#include "balance/slot_table.hpp"

#include <cstdint>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/error.hpp"

namespace epistle::test {
namespace {

using balance::Cluster;
using balance::SlotTable;

constexpr std::int32_t kMaxInt = std::numeric_limits<std::int32_t>::max();

template <typename Make>
void expect_refused_table(Make make) {
  try {
    make();
    ADD_FAILURE() << "a table was made";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument) << error.what();
  }
}

TEST(SlotTable, FewerSlotsThanExpertsAreRefused) {
  for (const std::int32_t num_slots : {0, 1, 7, 127}) {
    const Cluster cluster = Cluster::even(4, num_slots);
    expect_refused_table([&] { static_cast<void>(SlotTable::trivial(128, cluster.slots_of_rank)); });
    expect_refused_table([&] { cluster.check(128); });
  }
  EXPECT_EQ(SlotTable::trivial(128, Cluster::even(4, 128).slots_of_rank).num_slots(), 128);
}

TEST(SlotTable, NumbersThatFillTheMemoryAreRefusedBeforeItIsTaken) {
  for (const std::vector<std::int32_t>& slots :
       {std::vector<std::int32_t>{kMaxInt}, {kMaxInt, kMaxInt}, {1 << 24, 1}, {-1, 8}, {kMaxInt, -1}}) {
    expect_refused_table([&] { static_cast<void>(SlotTable::empty(slots)); });
    expect_refused_table([&] { static_cast<void>(SlotTable::trivial(4, slots)); });
    expect_refused_table([&] { Cluster{.slots_of_rank = slots, .domain_of_rank = {}}.check(4); });
  }
}

TEST(SlotTable, NumbersOfSlotsDoNotWrap) {
  EXPECT_EQ((Cluster{.slots_of_rank = {kMaxInt, kMaxInt}, .domain_of_rank = {}}.num_slots()), kMaxInt);
}

}  // namespace
}  // namespace epistle::test
