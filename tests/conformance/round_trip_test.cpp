// Every dispatcher on every group kind, against the oracle.
#include <iostream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/group.hpp"

#include "support/dispatcher_names.hpp"
#include "support/named_scenarios.hpp"
#include "support/player.hpp"
#include "support/process_ranks.hpp"

namespace epistle::testing {
namespace {

class RoundTrip : public ::testing::TestWithParam<std::tuple<std::string, NamedScenario>> {};

TEST_P(RoundTrip, OverThreads) {
  const std::string& dispatcher = std::get<0>(GetParam());
  const NamedScenario& named = std::get<1>(GetParam());
  const std::vector<Mismatch> mismatches = play_over_threads(dispatcher, named.scenario);
  for (std::size_t rank = 0; rank < mismatches.size(); ++rank) {
    EXPECT_FALSE(mismatches[rank].has_value()) << "rank " << rank << ": " << *mismatches[rank];
  }
}

TEST_P(RoundTrip, OverProcesses) {
  const std::string& dispatcher = std::get<0>(GetParam());
  const NamedScenario& named = std::get<1>(GetParam());
  const auto outcome = run_process_ranks(static_cast<int>(named.scenario.tokens_per_rank.size()), [&](Group& group) {
    const Mismatch mismatch = play_rank(group, dispatcher, named.scenario);
    if (mismatch) std::cerr << "rank " << group.rank() << ": " << *mismatch << std::endl;
    return mismatch ? 1 : 0;
  });
  for (std::size_t rank = 0; rank < outcome.size(); ++rank) EXPECT_EQ(outcome[rank], 0) << "exit of rank " << rank;
}

INSTANTIATE_TEST_SUITE_P(
    All, RoundTrip, ::testing::Combine(::testing::ValuesIn(dispatcher_names()), ::testing::ValuesIn(named_scenarios())),
    [](const auto& param_info) { return std::get<0>(param_info.param) + "_" + std::get<1>(param_info.param).name; });

}  // namespace
}  // namespace epistle::testing
