// A rank that is killed at every stage of a migration: the survivors keep one placement, and its weights.
#include <vector>

#include <gtest/gtest.h>

#include "support/killed_migration.hpp"
#include "support/process_ranks.hpp"
#include "unit/migrate/weights_for_tests.hpp"

namespace epistle::testing {
namespace {

constexpr int kMigrationRanks = 3;

// Rank 0 gets three, which is more than its spare slots: two rounds.
const std::vector<std::vector<std::int32_t>> kSlotsBefore = {{0, 1, 2, 3}, {4, 5, -1, -1}, {-1, -1, -1}};
const std::vector<std::vector<std::int32_t>> kSlotsAfter = {{4, 5, 2, -1}, {0, 1, 3, -1}, {0, 1, 4}};

class MigrationKill : public ::testing::TestWithParam<KillPoint> {};

TEST_P(MigrationKill, SurvivorsKeepOnePlacementAndItsWeights) {
  const KillPoint& point = GetParam();
  SharedArray<Survivor> survivors(kMigrationRanks);
  // Copied by a thread, or by the ranks themselves: by turns, so that each way meets every stage.
  const int turn = static_cast<int>(point.stage) + static_cast<int>(point.round) + point.victim;
  const auto play = [&](Group& group) {
    kill_at(point, group.rank());
    WeightStoreConfig config = killed_config(kSlotsBefore);
    config.low_priority = false;
    config.bytes_per_advance = turn % 2 == 0 ? 0 : 7000;
    WeightStore store(group, config);
    test::fill_weights(store, group.rank());
    migrate_until_failure(
        group, store, kSlotsAfter, [&] { return test::find_wrong_weights(store, group.rank()); },
        survivors[static_cast<std::size_t>(group.rank())]);
    return 0;
  };
  const std::vector<int> exits = run_process_ranks(kMigrationRanks, play, {.timeout = kMigrationTimeout});
  expect_one_placement_of_survivors(survivors, exits, point);
}

INSTANTIATE_TEST_SUITE_P(EveryStage, MigrationKill, ::testing::ValuesIn(all_kill_points(kMigrationRanks)),
                         [](const auto& trial) { return name_of(trial.param); });

}  // namespace
}  // namespace epistle::testing
