// Groups in several domains that go on without some of their ranks: whoever is left out, those that are left pass on
// each other's rows, and every bit is the oracle's.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/group.hpp"

#include "support/named_scenarios.hpp"
#include "support/process_ranks.hpp"
#include "support/random_scenario.hpp"
#include "support/round_trip.hpp"
#include "support/sanitizers.hpp"

namespace epistle::testing {
namespace {

using std::chrono::milliseconds;

constexpr int kRanksInDomains = 6;
constexpr milliseconds kLongTimeout{20'000};

Scenario scenario_without(const std::vector<int>& masked, int domain_size) {
  Scenario scenario;
  scenario.config = {.hidden = 32, .num_experts = 17, .top_k = 5, .max_tokens = 30};
  scenario.config.order = SumOrder::kDomains;
  scenario.tokens_per_rank = {5, 30, 7, 0, 19, 12};
  scenario.domain_size = domain_size;
  scenario.masked = masked;
  return scenario;
}

/// Layouts, sizings and payloads whose ways differ.
std::vector<Scenario> scenarios_without(const std::vector<int>& masked, int domain_size) {
  const Scenario token_rows = scenario_without(masked, domain_size);
  Scenario expert_rows = token_rows;
  expert_rows.config.layout = ExpertMajor{.alignment = 4};
  expert_rows.config.num_buffers = 2;
  expert_rows.stage_combine = true;
  expert_rows.num_workers = 2;
  Scenario fixed = token_rows;
  fixed.config.sizing = Capacity{.rows_per_rank = 40};
  fixed.config.overflow = OverflowPolicy::kDrop;
  fixed.config.wire = Fp8Blocks{};
  Scenario blocks = token_rows;
  blocks.config.layout = ExpertBlocks{.rows_per_expert = 9};
  blocks.config.sizing = Capacity{};
  blocks.config.overflow = OverflowPolicy::kDrop;
  blocks.hot_experts = true;
  return {token_rows, expert_rows, fixed, blocks};
}

bool is_left_out(const Scenario& scenario, int rank) {
  return std::find(scenario.masked.begin(), scenario.masked.end(), rank) != scenario.masked.end();
}

/// All ranks make a round trip; then the others play everything there is.
Mismatch play_without(Group& group, const std::string& dispatcher, const Scenario& scenario, bool split_halves) {
  Scenario whole = scenario;
  whole.masked.clear();
  try {
    Subject subject(group, dispatcher, scenario.config,
                    {.device = HostOptions{.num_workers = scenario.num_workers}, .split_halves = split_halves});
    EPISTLE_RETURN_MISMATCH(round_trip(subject, Round(whole, 0)));
    if (is_left_out(scenario, group.rank())) return std::nullopt;
    group.set_mask(scenario.masked);
    EPISTLE_RETURN_MISMATCH(play_on(subject, scenario));
    Subject later(group, dispatcher, scenario.config);
    return round_trip(later, Round(scenario, 0));
  } catch (const Error& error) {
    // It may be told so before it has seen the end of its call.
    if (error.code() != ErrorCode::kMaskedOut || !is_left_out(scenario, group.rank())) throw;
    return std::nullopt;
  }
}

void expect_bits_without(const std::string& dispatcher, const Scenario& scenario, bool split_halves,
                         const std::string& what) {
  std::vector<Mismatch> found(scenario.tokens_per_rank.size());
  run_thread_ranks(scenario.num_ranks(),
                   [&](Group& group) {
                     found[static_cast<std::size_t>(group.rank())] =
                         play_without(group, dispatcher, scenario, split_halves);
                   },
                   {.timeout = kLongTimeout, .domain_size = scenario.domain_size});
  for (const Mismatch& mismatch : found) EXPECT_FALSE(mismatch.has_value()) << what << ": " << *mismatch;
}

// Ranks that pass rows on, whole domains, and all but one; of domains of one, two and three.
TEST(DomainMasks, LeaveOutWhoPassesRowsOnAndLoseNothingElse) {
  const std::vector<std::vector<int>> masks = {{0}, {3}, {0, 3}, {2, 3}, {1, 2, 5}, {0, 1, 2, 3}, {0, 1, 2, 4, 5}};
  for (const int domain_size : {1, 2, 3}) {
    for (std::size_t idx = 0; idx < masks.size(); ++idx) {
      const std::vector<Scenario> scenarios = scenarios_without(masks[idx], domain_size);
      for (std::size_t kind = idx % 2; kind < scenarios.size(); kind += domain_size == 1 ? 4 : 2) {
        expect_bits_without("hybrid", scenarios[kind], kind == 0,
                            ::testing::PrintToString(masks[idx]) + " of domains of " + std::to_string(domain_size));
      }
    }
  }
}

TEST(DomainMasks, LeaveOthersWhatTheyHaveWhereAllAreReached) {
  for (const char* const dispatcher : {"direct", "alltoall", "reference"}) {
    expect_bits_without(dispatcher, scenarios_without({1, 4}, 2)[1], false, dispatcher);
  }
}

// Several chunks from each of the ranks whose rows one rank passes on.
TEST(DomainMasks, PassOnChunksOfSeveralRanks) {
  Scenario scenario = scenario_without({0, 1, 5}, 3);
  scenario.config.hidden = 16'384;
  scenario.num_rounds = 1;
  expect_bits_without("hybrid", scenario, false, "many chunks");
}

TEST(DomainMasks, GiveTheSameOverProcesses) {
  for (const std::vector<int>& masked : {std::vector<int>{0}, std::vector<int>{1, 2, 3}}) {
    const Scenario scenario = scenarios_without(masked, 2)[1];
    const auto play = [&](Group& group) {
      const Mismatch found = play_without(group, "hybrid", scenario, false);
      if (found) std::cerr << "rank " << group.rank() << ": " << *found << std::endl;
      return found ? 1 : 0;
    };
    const std::vector<int> exits =
        run_process_ranks(kRanksInDomains, play, {.timeout = kLongTimeout, .domain_size = 2});
    for (std::size_t rank = 0; rank < exits.size(); ++rank) EXPECT_EQ(exits[rank], 0) << "exit of rank " << rank;
  }
}

// Whatever the shape, the routing, the domains and the mask.
TEST(DomainMasks, GiveTheBitsOfTheOracleAtRandom) {
  const std::uint64_t num_scenarios = kInstrumented ? 8 : 60;
  for (std::uint64_t seed = 1; seed <= num_scenarios; ++seed) {
    Draw draw(mix(seed, 977));
    Scenario scenario = random_scenario(seed, {.num_ranks = draw.one_in(2) ? 8 : 6,
                                               .max_tokens = 24,
                                               .max_hidden = 128,
                                               .max_experts = 40,
                                               .max_top_k = 8,
                                               .max_elements = 40'000});
    scenario.domain_size = scenario.num_ranks() == 8 ? draw.any_of({1, 2, 4}) : draw.any_of({1, 2, 3});
    scenario.config.order = SumOrder::kDomains;
    scenario.config.max_handles = 8;
    const int kept = static_cast<int>(draw.between(0, scenario.num_ranks() - 1));
    for (int rank = 0; rank < scenario.num_ranks(); ++rank) {
      if (rank != kept && draw.one_in(3)) scenario.masked.push_back(rank);
    }
    expect_bits_without("hybrid", scenario, draw.one_in(2), "scenario " + std::to_string(seed));
  }
}

/// Threads that wait for each other by other means than the group.
class Rendezvous {
 public:
  void wait() {
    const int generation = num_arrived_.fetch_add(1) / kRanksInDomains;
    while (num_arrived_.load() < (generation + 1) * kRanksInDomains) std::this_thread::sleep_for(milliseconds(1));
  }

 private:
  std::atomic<int> num_arrived_{0};
};

TEST(DomainMasks, TakeRanksBackThatPassRowsOnAgain) {
  const Scenario whole = scenario_without({}, 2);
  const Scenario rest = scenario_without({0, 3}, 2);
  Rendezvous meeting;
  std::vector<Mismatch> found(kRanksInDomains);
  run_thread_ranks(kRanksInDomains,
                   [&](Group& group) {
                     const auto play = [&]() -> Mismatch {
                       Subject subject(group, "hybrid", whole.config);
                       for (int idx = 0; idx < 2; ++idx) {
                         EPISTLE_RETURN_MISMATCH(round_trip(subject, Round(whole, 2 * idx)));
                         meeting.wait();
                         if (!is_left_out(rest, group.rank())) {
                           group.set_mask(rest.masked);
                           EPISTLE_RETURN_MISMATCH(round_trip(subject, Round(rest, 2 * idx + 1)));
                         }
                         meeting.wait();
                         group.clear_mask();
                       }
                       return round_trip(subject, Round(whole, 7));
                     };
                     found[static_cast<std::size_t>(group.rank())] = play();
                   },
                   {.timeout = kLongTimeout, .domain_size = 2});
  for (const Mismatch& mismatch : found) EXPECT_FALSE(mismatch.has_value()) << *mismatch;
}

// The counter of bytes goes on, and what it counts is what the handle predicts: a stand-in crosses nothing twice.
TEST(DomainMasks, PutOnTheLinksWhatTheLayoutPredicts) {
  const Scenario whole = scenario_without({}, 3);
  const Scenario rest = scenario_without({1, 3, 4}, 3);
  std::atomic<std::int64_t> crossed{0};
  Rendezvous all_through;  // who still wakes from a call when the mask comes is told of it
  run_thread_ranks(kRanksInDomains,
                   [&](Group& group) {
                     Subject subject(group, "hybrid", whole.config);
                     EXPECT_FALSE(round_trip(subject, Round(whole, 0)).has_value());
                     const std::int64_t before = subject.dispatcher().network_bytes();
                     all_through.wait();
                     if (is_left_out(rest, group.rank())) return;
                     group.set_mask(rest.masked);
                     const Round round(rest, 1);
                     RankInputs inputs(round, group.rank());
                     const Handle handle = subject.prepare(inputs.prepare());
                     const WireBytes wire = subject.dispatcher().wire_bytes(handle);
                     EXPECT_EQ(subject.dispatcher().network_bytes(), before + wire.header_bytes);
                     const Received received = subject.dispatch(inputs.dispatch(handle));
                     EXPECT_EQ(subject.dispatcher().network_bytes(),
                               before + wire.header_bytes + wire.dispatch_links.network);
                     crossed += wire.dispatch_links.network;
                   },
                   {.timeout = kLongTimeout, .domain_size = 3});
  EXPECT_GT(crossed.load(), 0);
}

}  // namespace
}  // namespace epistle::testing
