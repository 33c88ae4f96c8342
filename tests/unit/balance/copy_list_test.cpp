// Copies are done one by one on a model of the slots: no expert is ever without one.
#include "balance/copy_list.hpp"

#include <map>

#include <gtest/gtest.h>

#include "unit/balance/loads_for_tests.hpp"

namespace epistle::balance {
namespace {

using test::numbers;
using test::random_placement;

/// Does the steps and says what the slots hold in the end.
SlotTable follow(SlotTable table, const std::vector<CopyStep>& steps, std::int32_t num_experts) {
  std::map<std::int32_t, std::int32_t> staged;  // by rank
  const auto at = [&](const SlotRef& ref) -> std::int32_t& {
    if (ref.local_slot == kStagingSlot) return staged[ref.rank];
    return table.expert[static_cast<std::size_t>(table.begin[static_cast<std::size_t>(ref.rank)] + ref.local_slot)];
  };
  for (const CopyStep& step : steps) {
    EXPECT_EQ(at(step.source), step.expert);
    at(step.destination) = step.expert;
    std::vector<std::int32_t> live = table.replica_counts(num_experts);
    for (const auto& [rank, expert] : staged) ++live[static_cast<std::size_t>(expert)];
    for (std::int32_t expert = 0; expert < num_experts; ++expert) {
      EXPECT_GT(live[static_cast<std::size_t>(expert)], 0) << "expert " << expert << " is lost";
    }
  }
  return table;
}

void expect_leads(const SlotTable& from, SlotTable to, std::int32_t num_experts, const Cluster& cluster) {
  std::vector<std::int64_t> shares(to.expert.size(), 0);
  keep_slots(from, to, shares);
  const std::vector<CopyStep> steps = list_copies(from, to, num_experts, cluster, 5);
  const SlotTable end = follow(from, steps, num_experts);
  std::int64_t num_new = 0;
  for (std::int32_t rank = 0; rank < to.num_ranks(); ++rank) {
    const auto before = from.experts_of(rank);
    for (std::size_t slot = 0; slot < to.experts_of(rank).size(); ++slot) {
      const std::int32_t wanted = to.experts_of(rank)[slot];
      if (wanted == kEmptySlot) continue;
      EXPECT_EQ(end.experts_of(rank)[slot], wanted);
      num_new += std::find(before.begin(), before.end(), wanted) == before.end() ? 1 : 0;
    }
  }
  // Waiting aside may take a step within a rank, but no copy between ranks more.
  EXPECT_EQ(summarize(steps).num_copies, num_new);
  EXPECT_EQ(summarize(steps).bytes, 5 * num_new);
}

TEST(CopyList, NeverLosesAnExpert) {
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    SCOPED_TRACE(seed);
    PhiloxStream stream = numbers(seed);
    const auto num_experts = static_cast<std::int32_t>(1 + stream.below(20));
    const auto num_ranks = static_cast<std::int32_t>(1 + stream.below(6));
    const auto num_slots = num_experts + static_cast<std::int32_t>(stream.below(8));
    const Cluster cluster = Cluster::even(num_ranks, num_slots, 1 + num_ranks / 3);
    expect_leads(random_placement(seed, num_experts, cluster), random_placement(seed + 5000, num_experts, cluster),
                 num_experts, cluster);
  }
}

TEST(CopyList, RingsWaitAside) {
  const Cluster cluster = Cluster::even(3, 3);
  const SlotTable from{.begin = {0, 1, 2, 3}, .expert = {0, 1, 2}};
  const SlotTable to{.begin = {0, 1, 2, 3}, .expert = {1, 2, 0}};
  expect_leads(from, to, 3, cluster);
  const std::vector<CopyStep> steps = list_copies(from, to, 3, cluster, 5);
  ASSERT_EQ(steps.size(), 4U);
  EXPECT_EQ(steps.front().destination.local_slot, kStagingSlot);
  EXPECT_EQ(steps.back().link, LinkClass::kLocal);
}

TEST(CopyList, TakesTheNearestSource) {
  const Cluster cluster = Cluster::even(4, 8, 2);
  const SlotTable from{.begin = {0, 2, 4, 6, 8}, .expert = {0, 1, 2, 3, 0, 2, 3, kEmptySlot}};
  SlotTable to = from;
  to.expert[7] = 0;
  const std::vector<CopyStep> steps = list_copies(from, to, 4, cluster, 5);
  ASSERT_EQ(steps.size(), 1U);
  EXPECT_EQ(steps.front().source, (SlotRef{2, 0}));
  EXPECT_EQ(steps.front().link, LinkClass::kDomain);
  to.expert[7] = 1;
  EXPECT_EQ(list_copies(from, to, 4, cluster, 5).front().link, LinkClass::kAcrossDomain);
}

TEST(CopyList, NothingForTheSamePlacement) {
  const Cluster cluster = Cluster::even(4, 12);
  const SlotTable table = random_placement(1, 10, cluster);
  EXPECT_TRUE(list_copies(table, table, 10, cluster, 5).empty());
}

}  // namespace
}  // namespace epistle::balance
