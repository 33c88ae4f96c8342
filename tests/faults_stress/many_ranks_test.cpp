// As many ranks as a machine may be asked for, on however few cores: run by `ctest -C stress`, not by default.
#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"
#include "epistle/group.hpp"

#include "multiprocess/reporting_children.hpp"
#include "support/process_ranks.hpp"
#include "support/round_trip.hpp"

namespace epistle::testing {
namespace {

constexpr std::chrono::milliseconds kTimeout{60'000};
// Until a group of 512 exists and has passed a round trip, on two cores.
constexpr std::chrono::seconds kPatience{240};

class ManyRanks : public ::testing::TestWithParam<int> {};

TEST_P(ManyRanks, FormAGroupAndPassTokens) {
  const int num_ranks = GetParam();
  Scenario scenario;
  scenario.config = {.hidden = 16, .num_experts = num_ranks, .top_k = 2, .max_tokens = 1};
  scenario.tokens_per_rank.assign(static_cast<std::size_t>(num_ranks), 1);
  const Round round(scenario, 0);
  const std::string job = unique_job();
  std::vector<ReportingChildren::Body> bodies;
  for (int rank = 0; rank < num_ranks; ++rank) {
    bodies.emplace_back([&, rank](ChildReport& report) {
      Group group = join_process_group({.rank = rank, .num_ranks = num_ranks, .job = job}, {.timeout = kTimeout});
      report.progress = 1;
      Subject subject(group, "direct", scenario.config);
      report.progress = 2;
      if (const Mismatch mismatch = round_trip(subject, round)) {
        throw Error(ErrorCode::kVerificationFailed, *mismatch);
      }
      group.barrier();
      report.progress = 3;
    });
  }
  const auto end = std::chrono::steady_clock::now() + kPatience;
  ReportingChildren children(bodies);
  for (std::size_t rank = 0; rank < children.size(); ++rank) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
    ASSERT_EQ(children.wait(rank, std::max(left, std::chrono::milliseconds(0))), 0)
        << "rank " << rank << " got to step " << children.report(rank).progress;
    ASSERT_FALSE(children.report(rank).threw) << "rank " << rank << ": " << children.report(rank).message;
    ASSERT_EQ(children.report(rank).progress, 3);
  }
  RecordProperty("took_ms", std::to_string(children.report(0).took_ms));
}

INSTANTIATE_TEST_SUITE_P(All, ManyRanks, ::testing::Values(256, 512));

}  // namespace
}  // namespace epistle::testing
