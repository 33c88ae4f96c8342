// What a plan gives to dispatch.
#include <vector>

#include <gtest/gtest.h>

#include "balance/slot_table.hpp"

namespace epistle::balance {
namespace {

TEST(ToPlacement, EmptySlotsAreLeftOutAndQuotasGoAlong) {
  const SlotTable table{.begin = {0, 3, 5, 6}, .expert = {1, kEmptySlot, 0, 2, 1, 2}};
  const Placement placement = table.to_placement(3, 8, std::vector<double>{0.25, 0.0, 1.0, 0.0, 0.75, 0.0},
                                                 {.near_first = true, .domain_of_rank = {0, 0, 1}});
  EXPECT_EQ(placement.generation(), 8U);
  EXPECT_EQ(placement.experts_of(0).size(), 2U);
  EXPECT_EQ(placement.experts_of(0)[1], 0);
  EXPECT_TRUE(placement.choice().near_first);
  // Nobody asks for expert 2, so nothing is known of its replicas.
  EXPECT_EQ(placement.choice().quotas, (std::vector<std::vector<double>>{{0.25, 1.0}, {1.0, 0.75}, {1.0}}));
  EXPECT_TRUE(table.to_placement(3, 8).choice().quotas.empty());
}

}  // namespace
}  // namespace epistle::balance
