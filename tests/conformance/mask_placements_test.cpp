// Placements that are set while a rank is left out.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <numeric>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"

#include "support/mask_cases.hpp"
#include "support/round_trip.hpp"

namespace epistle::testing {
namespace {

constexpr std::chrono::milliseconds kPlacementPatience{20'000};

// A placement that was set while a rank was left out is not its own: nothing is routed until all have the same again.
TEST(MaskedPlacements, AreRefusedWhereTheyDiffer) {
  constexpr int kOut = 2;
  Scenario scenario = masked_scenario({});
  scenario.tokens_per_rank = {5, 8, 12};
  const std::vector<std::vector<std::int32_t>> slots = {{0, 1, 2, 8}, {3, 4, 5, 0}, {6, 7, 8, 1}};
  scenario.config.slots_per_rank = 4;
  scenario.config.placement = Placement(9, slots, 1);
  Scenario moved = scenario;
  moved.next_placements = {Placement(9, {slots[1], slots[0], slots[2]}, 3)};
  Meeting meeting(3);
  std::vector<Mismatch> found(3);
  run_thread_ranks(
      3,
      [&](Group& group) {
        const auto play = [&]() -> Mismatch {
          Subject subject(group, "direct", scenario.config);
          EPISTLE_RETURN_MISMATCH(round_trip(subject, Round(scenario, 0)));
          Scenario rest = scenario;
          rest.masked = {kOut};
          meeting.wait();
          if (group.rank() != kOut) {
            group.set_mask({kOut});
            EPISTLE_RETURN_MISMATCH(round_trip(subject, Round(rest, 0)));
            subject.dispatcher().set_placement(Placement(9, {slots[2], slots[1], slots[0]}, 2));
          }
          meeting.wait();
          group.clear_mask();
          const Round round(moved, 1);
          RankInputs inputs(round, group.rank());
          for (int idx = 0; idx < 2; ++idx) {
            const ErrorCode code = code_of([&] { (void)subject.prepare(inputs.prepare()); });
            EPISTLE_RETURN_MISMATCH(expect_equal(code == ErrorCode::kShapeMismatch, true, "placements that differ"));
          }
          subject.dispatcher().set_placement(moved.next_placements.front());
          return round_trip(subject, round);
        };
        found[static_cast<std::size_t>(group.rank())] = play();
      },
      {.timeout = kPlacementPatience});
  for (const Mismatch& mismatch : found) EXPECT_FALSE(mismatch.has_value()) << *mismatch;
}

// The choice of a replica does not look at the mask; a placement without slots there leaves nothing to be lost.
TEST(MaskedPlacements, WithoutSlotsOfARankThatIsOutLoseNothing) {
  constexpr int kOut = 2;
  Scenario scenario = masked_scenario({});
  scenario.tokens_per_rank = {5, 8, 12};
  scenario.config.slots_per_rank = 5;
  scenario.config.placement = Placement(9, {{0, 1, 2}, {3, 4, 5}, {6, 7, 8}}, 1);
  scenario.next_placements = {Placement(9, {{0, 1, 2, 8, 6}, {3, 4, 5, 7, 8}, {}}, 2)};
  Scenario rest = scenario;
  rest.masked = {kOut};
  std::vector<Mismatch> found(3);
  run_thread_ranks(3,
                   [&](Group& group) {
                     if (group.rank() == kOut) return;
                     group.set_mask({kOut});
                     const auto play = [&]() -> Mismatch {
                       Subject subject(group, "direct", scenario.config);
                       const auto num_lost = [&] {
                         const std::vector<std::int64_t> lost = subject.dispatcher().lost_tokens();
                         return std::accumulate(lost.begin(), lost.end(), std::int64_t{0});
                       };
                       EPISTLE_RETURN_MISMATCH(round_trip(subject, Round(rest, 0)));
                       const std::int64_t lost = num_lost();
                       EPISTLE_RETURN_MISMATCH(expect_equal(lost > 0, true, "what was sent to the rank is lost"));
                       subject.dispatcher().set_placement(scenario.next_placements.front());
                       EPISTLE_RETURN_MISMATCH(round_trip(subject, Round(rest, 1)));
                       return expect_equal(num_lost(), lost, "lost with no slots there");
                     };
                     found[static_cast<std::size_t>(group.rank())] = play();
                   },
                   {.timeout = kPlacementPatience});
  for (const Mismatch& mismatch : found) EXPECT_FALSE(mismatch.has_value()) << *mismatch;
}

}  // namespace
}  // namespace epistle::testing
