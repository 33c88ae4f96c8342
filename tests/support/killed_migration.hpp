// A rank that is killed at a stage of a migration, on any device: what the survivors have in the end.
#pragma once

#include <chrono>
#include <csignal>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/error.hpp"
#include "epistle/group.hpp"
#include "epistle/migration.hpp"

#include "migrate/stages.hpp"
#include "support/shared_array.hpp"

namespace epistle::testing {

inline constexpr std::int32_t kMigrationExperts = 6;
inline constexpr std::chrono::milliseconds kMigrationTimeout{20'000};
inline constexpr std::uint32_t kMigrationRounds = 2;
inline constexpr int kStepsAfterMigration = 10'000;

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

/// Experts of several chunks each.
inline WeightStoreConfig killed_config(const std::vector<std::vector<std::int32_t>>& slots) {
  WeightStoreConfig config;
  config.num_experts = kMigrationExperts;
  config.expert_bytes = 40'000;
  config.slot_experts = slots;
  config.chunk_bytes = 4096;
  return config;
}

/// Where a rank ends.
struct KillPoint {
  migrate::Stage stage = migrate::Stage::kBegun;
  std::uint32_t round = 1;
  int victim = 0;
};

/// Of this process, which the hook looks at.
inline KillPoint& own_kill_point() {
  static KillPoint point;
  return point;
}

inline void kill_at(const KillPoint& point, int rank) {
  if (rank != point.victim) return;
  own_kill_point() = point;
  migrate::set_stage_hook([](migrate::Stage stage, std::uint32_t round) {
    if (stage == own_kill_point().stage && round == own_kill_point().round) ::raise(SIGKILL);
  });
}

/// Migrates until the group fails. `advance` is called between steps, `find_wrong` looks at the weights.
inline void migrate_until_failure(Group& group, WeightStore& store,
                                  const std::vector<std::vector<std::int32_t>>& target,
                                  const std::function<std::optional<std::string>()>& find_wrong, Survivor& survivor) {
  try {
    (void)store.begin(target);
    // Where nobody dies this ends all the same, and what is expected of the victim says so.
    for (int steps_done = 0; steps_done < kStepsAfterMigration;) {
      (void)store.advance();
      group.barrier();
      if (store.status().state != MigrationState::kCopying) ++steps_done;
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
  survivor.has_wrong_weights = find_wrong().has_value();
  survivor.settled = store.status().state != MigrationState::kCopying;
}

inline void expect_one_placement_of_survivors(const SharedArray<Survivor>& survivors, const std::vector<int>& exits,
                                              const KillPoint& point) {
  const Survivor& first = survivors[point.victim == 0 ? 1 : 0];
  for (int rank = 0; rank < static_cast<int>(exits.size()); ++rank) {
    SCOPED_TRACE(rank);
    if (rank == point.victim) {
      EXPECT_EQ(exits[static_cast<std::size_t>(rank)], 128 + SIGKILL) << "it was not at the stage";
      continue;
    }
    ASSERT_EQ(exits[static_cast<std::size_t>(rank)], 0);
    const Survivor& survivor = survivors[static_cast<std::size_t>(rank)];
    EXPECT_EQ(survivor.code, ErrorCode::kPeerLost);
    EXPECT_EQ(survivor.peer_rank, point.victim);
    EXPECT_TRUE(survivor.settled);
    EXPECT_TRUE(survivor.serves_all);
    EXPECT_FALSE(survivor.has_wrong_weights);
    EXPECT_EQ(survivor.generation, first.generation);
    EXPECT_EQ(survivor.placement, first.placement);
  }
  // Until all can know of all weights the placement before stays; once the switch is decided the new one is that of
  // all. In between either, and the same on all: the victim's steps go on until the signal reaches it.
  const std::uint64_t before = point.round;
  if (point.stage <= migrate::Stage::kCopied) {
    EXPECT_EQ(first.generation, before);
  } else if (point.stage >= migrate::Stage::kDecided) {
    EXPECT_EQ(first.generation, before + 1);
  } else {
    EXPECT_GE(first.generation, before);
    EXPECT_LE(first.generation, before + 1);
  }
}

/// Every stage in every round on every rank that comes there.
inline std::vector<KillPoint> all_kill_points(int num_ranks) {
  std::vector<KillPoint> points;
  for (int stage_idx = 0; stage_idx < int{migrate::kNumStages}; ++stage_idx) {
    const auto stage = static_cast<migrate::Stage>(stage_idx);
    for (std::uint32_t round = 1; round <= kMigrationRounds; ++round) {
      if (stage == migrate::Stage::kBegun && round > 1) continue;
      const int num_victims = stage == migrate::Stage::kAnnounced ? 1 : num_ranks;
      for (int victim = 0; victim < num_victims; ++victim) points.push_back({stage, round, victim});
    }
  }
  return points;
}

inline std::string name_of(const KillPoint& point) {
  return std::string(migrate::to_string(point.stage)) + "_in_round_" + std::to_string(point.round) + "_of_rank_" +
         std::to_string(point.victim);
}

}  // namespace epistle::testing
