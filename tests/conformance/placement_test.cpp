// Placements that change between two calls: see support/placement_cases.hpp.
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "support/dispatcher_names.hpp"
#include "support/placement_cases.hpp"

namespace epistle::testing {
namespace {

class Placements : public ::testing::TestWithParam<std::string> {};

TEST_P(Placements, RanksThatGiveDifferentOnesAllHearOfIt) { expect_different_ones_are_told({GetParam()}); }
TEST_P(Placements, OneThatIsNotNewerIsRefused) { expect_older_one_is_refused({GetParam()}); }
TEST_P(Placements, OneThatHasNoRoomIsRefused) { expect_one_without_room_is_refused({GetParam()}); }
TEST_P(Placements, DispatchersOfTheTrivialOneKeepIt) { expect_trivial_one_is_kept({GetParam()}); }
TEST_P(Placements, HandlesGoOnWithTheirOwn) { expect_handles_go_on({GetParam()}); }
TEST_P(Placements, FlatSumsAreThoseOfTheTrivialOne) { expect_flat_sums_of_the_trivial_one({GetParam()}); }
TEST_P(Placements, RefusedRoutingsDoNotCount) { expect_refused_routings_do_not_count({GetParam()}); }
TEST_P(Placements, CountsCanBeReadFromAnotherThread) { expect_counts_can_be_read_meanwhile({GetParam()}); }

TEST_P(Placements, ARankThatMakesAnotherCallIsFound) {
  const Scenario scenario = placed_scenario(6);
  const auto outcomes = on_placed_ranks({GetParam()}, scenario, [&](const Caller& caller) {
    Dispatcher& dispatcher = caller.subject.dispatcher();
    const Outcome outcome = outcome_of([&] {
      if (caller.rank == kBadRank) {
        (void)caller.prepare();
      } else {
        dispatcher.set_placement(scenario.next_placements.front());
      }
    });
    dispatcher.set_placement(scenario.next_placements.front());
    if (outcome) throw Error(*outcome);
  });
  expect_all(outcomes, ErrorCode::kShapeMismatch, {"set_placement"});
}

TEST_P(Placements, NoneIsSetBetweenTwoHalves) {
  const Scenario scenario = placed_scenario(7);
  const auto outcomes = on_placed_ranks({GetParam()}, scenario, [&](const Caller& caller) {
    Dispatcher& dispatcher = caller.subject.dispatcher();
    const Handle handle = caller.prepare();
    Pending pending = dispatcher.dispatch_send(caller.inputs.dispatch(handle));
    const Outcome outcome = outcome_of([&] { dispatcher.set_placement(scenario.next_placements.front()); });
    Received received = dispatcher.dispatch_receive(std::move(pending));
    received.release();
    dispatcher.set_placement(scenario.next_placements.front());
    if (outcome) throw Error(*outcome);
  });
  // Every rank has a send half open, and so complains of itself.
  expect_all(outcomes, ErrorCode::kInvalidArgument, {"dispatch"});
}

INSTANTIATE_TEST_SUITE_P(All, Placements, ::testing::ValuesIn(dispatcher_names()),
                         [](const auto& param_info) { return param_info.param; });

}  // namespace
}  // namespace epistle::testing
