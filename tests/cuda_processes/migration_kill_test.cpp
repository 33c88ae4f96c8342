// A rank that is killed at every stage of a migration of weights between two GPUs.
#include <vector>

#include <gtest/gtest.h>

#include "epistle/cuda.hpp"

#include "cuda_balance/gpu_weights_for_tests.hpp"
#include "support/cuda_devices.hpp"
#include "support/killed_migration.hpp"
#include "support/process_ranks.hpp"

namespace epistle::testing {
namespace {

// Each gets three, which is more than its spare slots, and no slot of its own is empty: two rounds.
const std::vector<std::vector<std::int32_t>> kGpuSlotsBefore = {{0, 1, 2}, {3, 4, 5}};
const std::vector<std::vector<std::int32_t>> kGpuSlotsAfter = {{3, 4, 5}, {0, 1, 2}};

// Needs no GPU: the same rounds on the host.
TEST(MigrationToBeKilledOnGpus, TakesAsManyRoundsAsHaveKillPoints) {
  std::vector<int> num_rounds(2);
  run_thread_ranks(2, [&](Group& group) {
    WeightStore store(group, killed_config(kGpuSlotsBefore), HostOptions{});
    (void)store.begin(kGpuSlotsAfter);
    num_rounds[static_cast<std::size_t>(group.rank())] = store.status().num_rounds;
    (void)store.cancel();
    group.barrier();
  });
  EXPECT_EQ(num_rounds, std::vector<int>(2, kMigrationRounds));
}

class CudaMigrationKill : public ::testing::TestWithParam<KillPoint> {
 protected:
  void SetUp() override {
    if (const std::string reason = missing_gpu_nodes(2); !reason.empty()) GTEST_SKIP() << reason;
  }
};

TEST_P(CudaMigrationKill, SurvivorsKeepOnePlacementAndItsWeights) {
  const KillPoint& point = GetParam();
  SharedArray<Survivor> survivors(2);
  const auto play = [&](Group& group) {
    kill_at(point, group.rank());
    WeightStore store(group, killed_config(kGpuSlotsBefore), CudaOptions{});
    DeviceArena arena(group.rank(), std::int64_t{1} << 20);
    fill_gpu_weights(store, group.rank(), arena);
    migrate_until_failure(
        group, store, kGpuSlotsAfter, [&] { return find_wrong_gpu_weights(store, group.rank(), arena); },
        survivors[static_cast<std::size_t>(group.rank())]);
    return 0;
  };
  const std::vector<int> exits = run_process_ranks(2, play, {.timeout = kMigrationTimeout});
  expect_one_placement_of_survivors(survivors, exits, point);
}

INSTANTIATE_TEST_SUITE_P(EveryStage, CudaMigrationKill, ::testing::ValuesIn(all_kill_points(2)),
                         [](const auto& trial) { return name_of(trial.param); });

}  // namespace
}  // namespace epistle::testing
