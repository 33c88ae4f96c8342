#include <functional>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"
#include "epistle/error.hpp"
#include "epistle/group.hpp"
#include "epistle/migration.hpp"

#include "unit/balance/loads_for_tests.hpp"
#include "unit/migrate/weights_for_tests.hpp"

namespace epistle::test {
namespace {

using balance::Cluster;

constexpr std::int32_t kNumExperts = 8;
constexpr int kNumRanks = 3;
constexpr int kMaxSteps = 20'000;

WeightStoreConfig small_config(std::uint64_t seed = 1) {
  WeightStoreConfig config;
  config.num_experts = kNumExperts;
  config.expert_bytes = 5001;
  config.slot_experts = by_rank(random_placement(seed, kNumExperts, Cluster::even(kNumRanks, 12)));
  config.chunk_bytes = 1000;
  config.low_priority = false;
  return config;
}

std::vector<std::vector<std::int32_t>> other_placement(std::uint64_t seed) {
  return by_rank(random_placement(seed, kNumExperts, Cluster::even(kNumRanks, 12)));
}

/// Steps until the migration has come to an end. Returns in which step the placement changed last.
int run_to_end(Group& group, WeightStore& store) {
  int last_change = -1;
  for (int step = 0; step < kMaxSteps && store.status().state == MigrationState::kCopying; ++step) {
    if (store.advance()) last_change = step;
    group.barrier();
  }
  return last_change;
}

void expect_right_weights(const WeightStore& store, int rank) {
  const auto wrong = find_wrong_weights(store, rank);
  EXPECT_FALSE(wrong) << *wrong;
}

ErrorCode code_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code();
  }
  return ErrorCode::kOk;
}

TEST(WeightStore, RandomPlansBringEveryByteAndAllRanksSwitchInOneStep) {
  std::vector<std::vector<int>> changes(kNumRanks);
  run_thread_ranks(kNumRanks, [&](Group& group) {
    WeightStore store(group, small_config());
    fill_weights(store, group.rank());
    for (std::uint64_t seed = 2; seed < 22; ++seed) {
      const auto target = other_placement(seed);
      const std::uint64_t before = store.placement().generation();
      ASSERT_TRUE(store.begin(target));
      changes[static_cast<std::size_t>(group.rank())].push_back(run_to_end(group, store));
      const MigrationStatus status = store.status();
      ASSERT_EQ(status.state, MigrationState::kDone);
      EXPECT_EQ(status.rounds_done, status.num_rounds);
      EXPECT_EQ(status.bytes_copied, status.bytes_into_rank);
      EXPECT_EQ(store.placement().generation(), before + static_cast<std::uint64_t>(status.num_rounds));
      balance::SlotTable wanted = balance::SlotTable::empty(Cluster::even(kNumRanks, 12).slots_of_rank);
      wanted.expert.clear();
      for (const auto& slots : target) wanted.expert.insert(wanted.expert.end(), slots.begin(), slots.end());
      EXPECT_EQ(store.placement(), wanted.to_placement(kNumExperts, store.placement().generation()));
      expect_right_weights(store, group.rank());
      EXPECT_FALSE(store.begin(target)) << "it is there already";
    }
  });
  for (const std::vector<int>& of_rank : changes) EXPECT_EQ(of_rank, changes.front());
}

TEST(WeightStore, WeightsAreRightInEveryStepOfAMigration) {
  run_thread_ranks(kNumRanks, [&](Group& group) {
    WeightStoreConfig config = small_config();
    config.max_bytes_per_s = 2'000'000;
    WeightStore store(group, config);
    fill_weights(store, group.rank());
    ASSERT_TRUE(store.begin(other_placement(7)));
    for (int step = 0; step < kMaxSteps && store.status().state == MigrationState::kCopying; ++step) {
      (void)store.advance();
      expect_right_weights(store, group.rank());
      std::uint64_t own = store.placement().generation();
      std::vector<std::uint64_t> all(kNumRanks);
      group.all_gather(&own, sizeof(own), all.data());
      EXPECT_EQ(all, std::vector<std::uint64_t>(kNumRanks, own)) << "ranks are at different placements in one step";
    }
    EXPECT_EQ(store.status().state, MigrationState::kDone);
  });
}

TEST(WeightStore, AdvanceDoesNotWaitForARankThatIsSlow) {
  // The weights of one rank take an hour; the others go on with their steps, and so does it.
  run_thread_ranks(kNumRanks, [&](Group& group) {
    WeightStoreConfig config = small_config();
    config.expert_bytes = 1 << 20;
    config.chunk_bytes = 4096;
    config.max_bytes_per_s = group.rank() == 1 ? 65536 : 0;
    WeightStore store(group, config);
    ASSERT_TRUE(store.begin(other_placement(3)));
    for (int step = 0; step < 100; ++step) {
      EXPECT_FALSE(store.advance());
      group.barrier();
    }
    EXPECT_EQ(store.status().state, MigrationState::kCopying);
  });
}

TEST(WeightStore, AdvanceCopiesWhatItMayWhereThereIsNoThread) {
  run_thread_ranks(kNumRanks, [&](Group& group) {
    WeightStoreConfig config = small_config();
    config.bytes_per_advance = 1500;
    WeightStore store(group, config);
    fill_weights(store, group.rank());
    for (std::uint64_t seed = 40; seed < 50; ++seed) {
      ASSERT_TRUE(store.begin(other_placement(seed)));
      std::int64_t before = store.status().bytes_copied;
      EXPECT_EQ(before, 0);
      while (store.status().state == MigrationState::kCopying) {
        (void)store.advance();
        const std::int64_t copied = store.status().bytes_copied;
        EXPECT_LE(copied - before, config.bytes_per_advance);
        before = copied;
        expect_right_weights(store, group.rank());
        group.barrier();
      }
      EXPECT_EQ(store.status().state, MigrationState::kDone);
      EXPECT_EQ(store.status().bytes_copied, store.status().bytes_into_rank);
    }
  });
}

TEST(WeightStore, OneRankCancelsForAll) {
  run_thread_ranks(kNumRanks, [&](Group& group) {
    WeightStoreConfig config = small_config();
    config.expert_bytes = 1 << 20;
    config.chunk_bytes = 4096;
    config.max_bytes_per_s = 1 << 18;
    WeightStore store(group, config);
    fill_weights(store, group.rank());
    const Placement before = store.placement();
    ASSERT_TRUE(store.begin(other_placement(3)));
    if (group.rank() == 2) {
      EXPECT_TRUE(store.cancel());
    }
    group.barrier();
    EXPECT_FALSE(store.advance());
    EXPECT_EQ(store.status().state, MigrationState::kCancelled);
    EXPECT_EQ(store.placement(), before);
    EXPECT_FALSE(store.cancel()) << "none runs";
    expect_right_weights(store, group.rank());
    // And another can begin.
    ASSERT_TRUE(store.begin(other_placement(4)));
    EXPECT_TRUE(store.cancel());
  });
}

TEST(WeightStore, GoesOnWithWorkOfADispatcherBetween) {
  run_thread_ranks(2, [&](Group& group) {
    DispatcherConfig shape;
    shape.hidden = 16;
    shape.num_experts = 4;
    shape.top_k = 1;
    shape.max_tokens = 4;
    Dispatcher dispatcher(group, "direct", shape);
    WeightStoreConfig config;
    config.num_experts = 4;
    config.expert_bytes = 4096;
    config.slot_experts = {{0, 1}, {2, 3}};
    config.low_priority = false;
    WeightStore store(group, config);
    fill_weights(store, group.rank());
    // A ring: each takes the other's last one.
    ASSERT_TRUE(store.begin({{0, 2}, {1, 3}}));
    const std::vector<std::int32_t> ids = {0, 1, 2, 3};
    for (int step = 0; step < kMaxSteps && store.status().state == MigrationState::kCopying; ++step) {
      (void)store.advance();
      const Handle handle = dispatcher.prepare({.expert_ids = IdsView(ids.data(), 4, 1)});
      EXPECT_TRUE(handle.valid());
    }
    EXPECT_EQ(store.status().state, MigrationState::kDone);
    expect_right_weights(store, group.rank());
  });
}

TEST(WeightStore, RefusesOnAllRanksWhatOneRankCannotDo) {
  run_thread_ranks(kNumRanks, [&](Group& group) {
    WeightStore store(group, small_config());
    auto target = other_placement(3);
    // Different on one rank.
    auto own = group.rank() == 1 ? other_placement(4) : target;
    EXPECT_EQ(code_of([&] { store.begin(own); }), ErrorCode::kShapeMismatch);
    // Wrong on one rank.
    own = target;
    if (group.rank() == 1) own.front().assign(own.front().size(), kNoExpert);
    EXPECT_EQ(code_of([&] { store.begin(own); }),
              group.rank() == 1 ? ErrorCode::kInvalidArgument : ErrorCode::kPeerRejected);
    own = target;
    for (auto& slots : own) slots.assign(slots.size(), 0);
    EXPECT_EQ(code_of([&] { store.begin(own); }), ErrorCode::kInvalidArgument);
    EXPECT_EQ(store.status().state, MigrationState::kIdle);
    ASSERT_TRUE(store.begin(target));
    EXPECT_EQ(code_of([&] { store.begin(target); }), ErrorCode::kInvalidArgument) << "one runs already";
    EXPECT_EQ(code_of([&] { store.settle(); }), ErrorCode::kInvalidArgument) << "the group is sound";
    EXPECT_EQ(code_of([&] { (void)store.weights(100); }), ErrorCode::kInvalidArgument);
    // A rank that leaves would be lost for those that still call settle().
    group.barrier();
  });
}

TEST(WeightStore, RefusesConfigurationsThatMakeNoSense) {
  const std::pair<const char*, std::function<void(WeightStoreConfig&)>> changes[] = {
      {"no ranks", [](WeightStoreConfig& config) { config.slot_experts.clear(); }},
      {"no bytes", [](WeightStoreConfig& config) { config.expert_bytes = 0; }},
      {"too many bytes", [](WeightStoreConfig& config) { config.expert_bytes = std::int64_t{1} << 60; }},
      {"one spare", [](WeightStoreConfig& config) { config.spare_slots = 1; }},
      {"no chunk", [](WeightStoreConfig& config) { config.chunk_bytes = 0; }},
      {"a rate below zero", [](WeightStoreConfig& config) { config.max_bytes_per_s = -1; }},
      {"an advance below zero", [](WeightStoreConfig& config) { config.bytes_per_advance = -1; }},
      {"a rate without a thread",
       [](WeightStoreConfig& config) {
         config.bytes_per_advance = 1;
         config.max_bytes_per_s = 1;
       }},
      {"an expert without a slot", [](WeightStoreConfig& config) { config.num_experts = kNumExperts + 1; }},
      {"an expert twice",
       [](WeightStoreConfig& config) {
         config.slot_experts[0] = {0, 0, 1, 2};
       }},
      {"domains of other ranks", [](WeightStoreConfig& config) { config.domain_of_rank = {0}; }},
  };
  for (const auto& [what, change] : changes) {
    SCOPED_TRACE(what);
    run_thread_ranks(kNumRanks, [&, &change = change](Group& group) {  // Clang 14 captures no binding
      WeightStoreConfig config = small_config();
      change(config);
      EXPECT_EQ(code_of([&] { WeightStore(group, config); }), ErrorCode::kInvalidArgument);
    });
  }
}

}  // namespace
}  // namespace epistle::test
