// A rank that is killed at every stage of a migration: the survivors keep one placement, and its weights.
#include <algorithm>
#include <array>
#include <csignal>
#include <string>
#include <tuple>
#include <vector>

#include <unistd.h>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "epistle/error.hpp"
#include "epistle/group.hpp"
#include "epistle/migration.hpp"

#include "migrate/stages.hpp"
#include "support/process_ranks.hpp"
#include "support/shared_array.hpp"
#include "unit/migrate/weights_for_tests.hpp"

namespace epistle::testing {
namespace {

using migrate::Stage;

constexpr int kMigrationRanks = 3;
constexpr std::int32_t kMigrationExperts = 6;
constexpr std::chrono::milliseconds kMigrationTimeout{20'000};
constexpr std::uint32_t kMigrationRounds = 2;

// Rank 0 gets three, which is more than its spare slots: two rounds.
const std::vector<std::vector<std::int32_t>> kSlotsBefore = {{0, 1, 2, 3}, {4, 5, -1, -1}, {-1, -1, -1}};
const std::vector<std::vector<std::int32_t>> kSlotsAfter = {{4, 5, 2, -1}, {0, 1, 3, -1}, {0, 1, 4}};

/// What a survivor has at its end.
struct Survivor {
  bool settled = false;
  ErrorCode code = ErrorCode::kOk;
  int peer_rank = -1;
  std::uint64_t generation = 0;
  std::uint64_t placement = 0;
  bool has_wrong_weights = true;
  bool serves_all = false;
};

Stage killed_at;
std::uint32_t killed_in;

void kill_here(Stage stage, std::uint32_t round) {
  if (stage == killed_at && round == killed_in) ::raise(SIGKILL);
}

void play_migration(Group& group, std::int64_t bytes_per_advance, Survivor& survivor) {
  WeightStoreConfig config;
  config.num_experts = kMigrationExperts;
  config.expert_bytes = 40'000;
  config.slot_experts = kSlotsBefore;
  config.chunk_bytes = 4096;
  config.low_priority = false;
  config.bytes_per_advance = bytes_per_advance;
  WeightStore store(group, config);
  test::fill_weights(store, group.rank());
  try {
    (void)store.begin(kSlotsAfter);
    for (;;) {
      (void)store.advance();
      group.barrier();
    }
  } catch (const Error& error) {
    survivor.code = error.code();
    survivor.peer_rank = error.context().peer_rank;
    store.settle();
  }
  const Placement& placement = store.placement();
  survivor.generation = placement.generation();
  survivor.serves_all = true;
  for (std::int32_t expert = 0; expert < kMigrationExperts; ++expert) {
    survivor.serves_all = survivor.serves_all && !placement.replicas_of(expert).empty();
    for (const SlotRef& slot : placement.replicas_of(expert)) {
      survivor.placement = survivor.placement * 31 + static_cast<std::uint64_t>(slot.rank * 16 + slot.local_slot + 1);
    }
    survivor.placement = survivor.placement * 37 + 1;
  }
  survivor.has_wrong_weights = test::find_wrong_weights(store, group.rank()).has_value();
  survivor.settled = store.status().state != MigrationState::kCopying;
}

class MigrationKill : public ::testing::TestWithParam<std::tuple<int, int, int>> {};

TEST_P(MigrationKill, SurvivorsKeepOnePlacementAndItsWeights) {
  const auto [stage_idx, round, victim] = GetParam();
  const auto stage = static_cast<Stage>(stage_idx);
  SharedArray<Survivor> survivors(kMigrationRanks);
  // Copied by a thread, or by the ranks themselves: by turns, so that each way meets every stage.
  const std::int64_t bytes_per_advance = (stage_idx + round + victim) % 2 == 0 ? 0 : 7000;
  const std::vector<int> exits =
      run_process_ranks(kMigrationRanks,
                        [&, stage = stage, round = round, victim = victim](Group& group) {
                          if (group.rank() == victim) {
                            killed_at = stage;
                            killed_in = static_cast<std::uint32_t>(round);
                            migrate::set_stage_hook(&kill_here);
                          }
                          play_migration(group, bytes_per_advance, survivors[static_cast<std::size_t>(group.rank())]);
                          return 0;
                        },
                        {.timeout = kMigrationTimeout});
  const Survivor& first = survivors[victim == 0 ? 1 : 0];
  for (int rank = 0; rank < kMigrationRanks; ++rank) {
    SCOPED_TRACE(rank);
    if (rank == victim) {
      EXPECT_EQ(exits[static_cast<std::size_t>(rank)], 128 + SIGKILL) << "it was not at the stage";
      continue;
    }
    ASSERT_EQ(exits[static_cast<std::size_t>(rank)], 0);
    const Survivor& survivor = survivors[static_cast<std::size_t>(rank)];
    EXPECT_EQ(survivor.code, ErrorCode::kPeerLost);
    EXPECT_EQ(survivor.peer_rank, victim);
    EXPECT_TRUE(survivor.settled);
    EXPECT_TRUE(survivor.serves_all);
    EXPECT_FALSE(survivor.has_wrong_weights);
    EXPECT_EQ(survivor.generation, first.generation);
    EXPECT_EQ(survivor.placement, first.placement);
  }
  // Until all can know of all weights the placement before stays; once the switch is decided the new one is that of
  // all. In between either, and the same on all: the victim's steps go on until the signal reaches it.
  const auto before = static_cast<std::uint64_t>(round);
  if (stage <= Stage::kCopied) {
    EXPECT_EQ(first.generation, before);
  } else if (stage >= Stage::kDecided) {
    EXPECT_EQ(first.generation, before + 1);
  } else {
    EXPECT_GE(first.generation, before);
    EXPECT_LE(first.generation, before + 1);
  }
}

std::string name_of_kill(const ::testing::TestParamInfo<std::tuple<int, int, int>>& trial) {
  const auto& [stage, round, victim] = trial.param;
  return fmt::format("{}_in_round_{}_of_rank_{}", migrate::to_string(static_cast<Stage>(stage)), round, victim);
}

/// Every stage in every round on every rank that comes there.
std::vector<std::tuple<int, int, int>> all_kills() {
  std::vector<std::tuple<int, int, int>> kills;
  for (int stage = 0; stage < int{migrate::kNumStages}; ++stage) {
    for (int round = 1; round <= int{kMigrationRounds}; ++round) {
      if (static_cast<Stage>(stage) == Stage::kBegun && round > 1) continue;
      const int num_victims = static_cast<Stage>(stage) == Stage::kAnnounced ? 1 : kMigrationRanks;
      for (int victim = 0; victim < num_victims; ++victim) kills.emplace_back(stage, round, victim);
    }
  }
  return kills;
}

INSTANTIATE_TEST_SUITE_P(EveryStage, MigrationKill, ::testing::ValuesIn(all_kills()), name_of_kill);

}  // namespace
}  // namespace epistle::testing
