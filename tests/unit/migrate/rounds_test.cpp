#include "migrate/rounds.hpp"

#include <set>

#include <gtest/gtest.h>

#include "unit/balance/loads_for_tests.hpp"

namespace epistle::test {
namespace {

using balance::Cluster;
using balance::SlotTable;
using migrate::Held;
using migrate::Places;
using migrate::Pull;
using migrate::Round;

constexpr std::int32_t kSpare = 2;

/// What lies in every place of every rank.
using Memory = std::vector<std::vector<std::int32_t>>;

Memory memory_of(const Places& places) {
  Memory memory;
  for (const std::vector<Held>& slots : places.slots) {
    std::vector<std::int32_t>& rank = memory.emplace_back(slots.size() + kSpare, balance::kEmptySlot);
    for (const Held& held : slots) {
      if (held.place >= 0) rank[static_cast<std::size_t>(held.place)] = held.expert;
    }
  }
  return memory;
}

std::int32_t& at(Memory& memory, const SlotRef& ref) {
  return memory[static_cast<std::size_t>(ref.rank)][static_cast<std::size_t>(ref.local_slot)];
}

void expect_all_usable(const Places& places, Memory& memory, std::int32_t num_experts) {
  std::set<std::int32_t> served;
  for (std::size_t rank = 0; rank < places.slots.size(); ++rank) {
    std::set<std::int32_t> taken;
    for (const Held& held : places.usable_of(static_cast<std::int32_t>(rank))) {
      EXPECT_EQ(memory[rank].at(static_cast<std::size_t>(held.place)), held.expert);
      EXPECT_TRUE(taken.insert(held.place).second) << "two experts in one place";
      served.insert(held.expert);
    }
  }
  EXPECT_EQ(served.size(), static_cast<std::size_t>(num_experts));
}

/// Does the copies of a round and checks that they leave alone what is in force, and what other copies of it read.
void play(const Round& round, const Places& before, Memory& memory) {
  const Memory at_first = memory;
  for (const Pull& pull : round.pulls) {
    for (const Held& held : before.usable_of(pull.destination.rank)) EXPECT_NE(held.place, pull.destination.local_slot);
    const auto rank = static_cast<std::size_t>(pull.source.rank);
    EXPECT_EQ(at_first[rank].at(static_cast<std::size_t>(pull.source.local_slot)), pull.expert);
    at(memory, pull.destination) = pull.expert;
  }
}

Cluster uneven_cluster(std::uint64_t seed, std::int32_t num_experts) {
  PhiloxStream stream = numbers(seed + 100);
  Cluster cluster;
  const auto num_ranks = static_cast<std::int32_t>(stream.below(5)) + 1;
  for (std::int32_t rank = 0; rank < num_ranks; ++rank) {
    cluster.slots_of_rank.push_back(static_cast<std::int32_t>(stream.below(5)));
  }
  while (cluster.num_slots() < num_experts) ++cluster.slots_of_rank[stream.below(cluster.slots_of_rank.size())];
  return cluster;
}

TEST(MigrationRounds, LeadToTheTargetAndKeepEveryExpertUsableAllTheTime) {
  constexpr std::int32_t kNumExperts = 9;
  int num_with_several = 0;
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(seed);
    const Cluster cluster = uneven_cluster(seed, kNumExperts);
    SlotTable now = random_placement(seed, kNumExperts, cluster);
    Places places = Places::from(now);
    Memory memory = memory_of(places);
    // Several in a row: places are used again.
    for (std::uint64_t next = 1; next <= 3; ++next) {
      const SlotTable target = random_placement(seed + 1000 * next, kNumExperts, cluster);
      const auto steps = balance::list_copies(now, target, kNumExperts, cluster, 1);
      const std::vector<Round> rounds = migrate::plan_rounds(places, target, steps, kSpare);
      std::size_t num_pulls = 0;
      for (const Round& round : rounds) {
        play(round, places, memory);
        places = round.after;
        expect_all_usable(places, memory, kNumExperts);
        num_pulls += round.pulls.size();
      }
      num_with_several += rounds.size() > 1 ? 1 : 0;
      EXPECT_EQ(static_cast<std::int64_t>(num_pulls), balance::summarize(steps).num_copies);
      now = target;
      EXPECT_EQ(places.placement(kNumExperts, 0), target.to_placement(kNumExperts, 0));
    }
  }
  EXPECT_GT(num_with_several, 50);
}

TEST(MigrationRounds, AreNoneWhereNothingChanges) {
  const Cluster cluster = Cluster::even(3, 9);
  const SlotTable table = random_placement(1, 7, cluster);
  EXPECT_TRUE(migrate::plan_rounds(Places::from(table), table, {}, kSpare).empty());
}

TEST(MigrationRounds, AReplicaThatOnlyGoesTakesARoundAndNoCopy) {
  SlotTable table = SlotTable::empty(std::vector<std::int32_t>{2, 1});
  table.expert = {0, 1, 0};
  SlotTable target = table;
  target.expert = {0, 1, balance::kEmptySlot};
  const std::vector<Round> rounds = migrate::plan_rounds(Places::from(table), target, {}, kSpare);
  ASSERT_EQ(rounds.size(), 1U);
  EXPECT_TRUE(rounds.front().pulls.empty());
  EXPECT_TRUE(rounds.front().after.usable_of(1).empty());
}

}  // namespace
}  // namespace epistle::test
