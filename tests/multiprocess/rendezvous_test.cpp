// Ranks that do not come, come twice, or do not belong together.
#include "group/rendezvous.hpp"

#include <chrono>
#include <csignal>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/group.hpp"

#include "group/shared_memory.hpp"
#include "multiprocess/fault.hpp"
#include "multiprocess/reporting_children.hpp"
#include "support/process_ranks.hpp"

namespace epistle::testing {
namespace {

constexpr std::chrono::milliseconds kShortMeeting{500};
constexpr std::chrono::milliseconds kLongMeeting{20'000};
constexpr std::int64_t kMeetQuicklyMs = 5'000;

/// Joins a group and passes a barrier.
ReportingChildren::Body joiner(const LaunchInfo& info, std::chrono::milliseconds timeout,
                               std::chrono::milliseconds delay = {}) {
  return [info, timeout, delay](ChildReport&) {
    std::this_thread::sleep_for(delay);
    Group group = join_process_group(info, {.timeout = timeout});
    group.barrier();
  };
}

LaunchInfo launch(const std::string& job, int rank, int num_ranks) {
  return {.rank = rank, .num_ranks = num_ranks, .job = job};
}

void expect_error(ReportingChildren& children, std::size_t idx, ErrorCode code, int peer_rank,
                  const std::string& part) {
  SCOPED_TRACE("child " + std::to_string(idx));
  ASSERT_EQ(children.wait(idx), 0);
  const ChildReport& report = children.report(idx);
  ASSERT_TRUE(report.threw);
  EXPECT_EQ(report.code, code) << report.message;
  EXPECT_EQ(report.peer_rank, peer_rank) << report.message;
  EXPECT_NE(std::string(report.message).find(part), std::string::npos) << report.message;
  EXPECT_LT(report.took_ms, kMeetQuicklyMs);
  EXPECT_FALSE(report.has_shared_memory);
}

TEST(RendezvousFailures, MissingRankIsNamed) {
  const std::string job = unique_job();
  ReportingChildren children({joiner(launch(job, 0, 4), kShortMeeting), joiner(launch(job, 1, 4), kShortMeeting),
                              joiner(launch(job, 3, 4), kShortMeeting)});
  expect_error(children, 0, ErrorCode::kTimeout, 2, "3 of 4 ranks joined within 500 ms; absent: 2");
  EXPECT_EQ(children.report(0).phase, Phase::kRendezvous);
  for (const std::size_t idx : {1U, 2U}) {
    expect_error(children, idx, ErrorCode::kTimeout, 2, "rank 2 did not join the group within 500 ms");
    EXPECT_EQ(children.report(idx).phase, Phase::kRendezvous);
  }
}

TEST(RendezvousFailures, MissingRootIsNamed) {
  const std::string job = unique_job();
  ReportingChildren children({joiner(launch(job, 1, 3), kShortMeeting), joiner(launch(job, 2, 3), kShortMeeting)});
  for (const std::size_t idx : {0U, 1U}) {
    expect_error(children, idx, ErrorCode::kTimeout, 0, "rank 0 did not open the meeting point within 500 ms");
    EXPECT_EQ(children.report(idx).phase, Phase::kRendezvous);
  }
}

TEST(RendezvousFailures, AnotherGroupSizeIsRefused) {
  const std::string job = unique_job();
  constexpr std::chrono::milliseconds kLast{200};
  ReportingChildren children({joiner(launch(job, 0, 3), kLongMeeting), joiner(launch(job, 1, 3), kLongMeeting),
                              joiner(launch(job, 2, 4), kLongMeeting, kLast)});
  expect_error(children, 0, ErrorCode::kShapeMismatch, 2, "rank 2 came with 4 ranks");
  expect_error(children, 1, ErrorCode::kShapeMismatch, 2, "rank 2 has another group size");
  expect_error(children, 2, ErrorCode::kShapeMismatch, 0, "rank 0 refused this rank (2 of 4)");
}

TEST(RendezvousFailures, RankThatCameTwiceIsRefusedAndTheOthersGoOn) {
  const std::string job = unique_job();
  constexpr std::chrono::milliseconds kSecond{100};
  constexpr std::chrono::milliseconds kLast{300};
  ReportingChildren children({joiner(launch(job, 0, 3), kLongMeeting), joiner(launch(job, 1, 3), kLongMeeting),
                              joiner(launch(job, 1, 3), kLongMeeting, kSecond),
                              joiner(launch(job, 2, 3), kLongMeeting, kLast)});
  for (std::size_t idx = 0; idx < children.size(); ++idx) ASSERT_EQ(children.wait(idx), 0) << "child " << idx;
  // Whichever of the two came second.
  const std::size_t refused = children.report(1).threw ? 1 : 2;
  EXPECT_EQ(children.report(refused).code, ErrorCode::kInvalidArgument) << children.report(refused).message;
  EXPECT_NE(std::string(children.report(refused).message).find("came twice"), std::string::npos);
  for (const std::size_t idx : {std::size_t{0}, 3 - refused, std::size_t{3}}) {
    EXPECT_FALSE(children.report(idx).threw) << "child " << idx << ": " << children.report(idx).message;
  }
}

TEST(RendezvousFailures, SecondRootIsRefused) {
  const std::string job = unique_job();
  constexpr std::chrono::milliseconds kSecond{100};
  constexpr std::chrono::milliseconds kLast{400};
  ReportingChildren children({joiner(launch(job, 0, 2), kLongMeeting), joiner(launch(job, 0, 2), kLongMeeting, kSecond),
                              joiner(launch(job, 1, 2), kLongMeeting, kLast)});
  expect_error(children, 1, ErrorCode::kInvalidArgument, -1, "another rank 0");
  for (const std::size_t idx : {0U, 2U}) {
    EXPECT_EQ(children.wait(idx), 0);
    EXPECT_FALSE(children.report(idx).threw) << children.report(idx).message;
  }
}

TEST(RendezvousFailures, JobsOfDifferentNamesDoNotMeet) {
  const std::string one = unique_job();
  const std::string two = unique_job();
  ReportingChildren children({joiner(launch(one, 0, 2), kLongMeeting), joiner(launch(two, 0, 2), kLongMeeting),
                              joiner(launch(two, 1, 2), kLongMeeting), joiner(launch(one, 1, 2), kLongMeeting)});
  for (std::size_t idx = 0; idx < children.size(); ++idx) {
    EXPECT_EQ(children.wait(idx), 0);
    EXPECT_FALSE(children.report(idx).threw) << children.report(idx).message;
  }
}

TEST(RendezvousFailures, ImpossibleRankIsRefusedAtOnce) {
  for (const int rank : {-1, 2}) {
    ReportingChildren children({joiner(launch(unique_job(), rank, 2), kLongMeeting)});
    expect_error(children, 0, ErrorCode::kInvalidArgument, -1, "is not in [0, 2)");
  }
}

// ---- Ranks that fail between meeting and founding the group ---------------------------------------------------------

ReportingChildren start_founding(int victim, Fault fault, std::chrono::milliseconds timeout) {
  const std::string job = unique_job();
  std::vector<ReportingChildren::Body> bodies;
  for (int rank = 0; rank < 4; ++rank) {
    bodies.emplace_back([=](ChildReport&) {
      Rendezvous rendezvous(job, rank, 4, timeout);
      if (rank == victim) fail_now(fault);
      rendezvous.found([] { return create_shared_file(4096); }, [](const UniqueFd&) {}, timeout);
    });
  }
  return ReportingChildren(bodies);
}

// Rank 0 finds out what became of any other, and the others what became of rank 0. The rest they learn in the memory
// that they share by then (tests/faults).
class FoundingFailures : public ::testing::TestWithParam<int> {
 protected:
  static std::vector<int> witnesses() { return GetParam() == 0 ? std::vector<int>{1, 2, 3} : std::vector<int>{0}; }
};

TEST_P(FoundingFailures, RankThatEndsIsNamed) {
  for (const Fault fault : {Fault::kKill, Fault::kExit}) {
    ReportingChildren children = start_founding(GetParam(), fault, kLongMeeting);
    for (const int rank : witnesses()) {
      expect_error(children, static_cast<std::size_t>(rank), ErrorCode::kPeerLost, GetParam(),
                   "rank " + std::to_string(GetParam()) + " exited");
      // The others may still have been on their way.
      const Phase phase = children.report(static_cast<std::size_t>(rank)).phase;
      EXPECT_TRUE(phase == Phase::kRendezvous || phase == Phase::kCreate) << to_string(phase);
    }
  }
}

TEST_P(FoundingFailures, RankThatStallsIsNamed) {
  ReportingChildren children = start_founding(GetParam(), Fault::kStop, kShortMeeting);
  for (const int rank : witnesses()) {
    expect_error(children, static_cast<std::size_t>(rank), ErrorCode::kTimeout, GetParam(),
                 "rank " + std::to_string(GetParam()) + " did not join the exchange");
  }
  const auto victim = static_cast<std::size_t>(GetParam());
  children.send(victim, SIGCONT);
  ASSERT_EQ(children.wait(victim), 0);
}

INSTANTIATE_TEST_SUITE_P(All, FoundingFailures, ::testing::Values(0, 2),
                         [](const auto& param_info) { return "rank" + std::to_string(param_info.param); });

}  // namespace
}  // namespace epistle::testing
