// A rank that is killed, exits or stops, before and inside every call: the others get a typed error in time, name it,
// and leave nothing behind.
#include <cerrno>
#include <chrono>
#include <csignal>
#include <string>
#include <tuple>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "epistle/group.hpp"

#include "multiprocess/rank_program.hpp"
#include "support/dispatcher_names.hpp"
#include "support/process_ranks.hpp"

namespace epistle::testing {
namespace {

// A death must be seen long before the timeout, so that it cannot have been the timeout that was seen.
constexpr std::chrono::milliseconds kLongTimeout{20'000};
constexpr std::int64_t kQuicklyMs = 5'000;
constexpr std::chrono::milliseconds kShortTimeout{600};
constexpr std::int64_t kSlackMs = 5'000;

class PeerFailure : public ::testing::Test {
 protected:
  static ReportingChildren start(const Failure& failure, std::chrono::milliseconds timeout) {
    const std::string job = unique_job();
    std::vector<ReportingChildren::Body> bodies;
    for (int rank = 0; rank < kNumRanks; ++rank) {
      const LaunchInfo info{.rank = rank, .num_ranks = kNumRanks, .job = job};
      bodies.emplace_back(
          [failure, info, timeout](ChildReport& report) { play_rank_of(failure, info, timeout, report); });
    }
    return ReportingChildren(bodies);
  }

  static void expect_survivors(ReportingChildren& children, const Failure& failure, ErrorCode code) {
    for (int rank = 0; rank < kNumRanks; ++rank) {
      if (rank == failure.victim) continue;
      SCOPED_TRACE("survivor " + std::to_string(rank));
      const auto idx = static_cast<std::size_t>(rank);
      ASSERT_EQ(children.wait(idx), 0) << "it did not come to its end";
      const ChildReport& report = children.report(idx);
      EXPECT_TRUE(report.returned);
      ASSERT_TRUE(report.threw);
      EXPECT_EQ(report.code, code) << report.message;
      EXPECT_EQ(report.peer_rank, failure.victim) << report.message;
      EXPECT_EQ(report.phase, phase_of(failure)) << report.message;
      EXPECT_EQ(report.missing_rows, missing_rows_of(failure, rank, static_cast<Step>(report.progress)))
          << report.message;
      EXPECT_FALSE(report.has_shared_memory);
      if (code == ErrorCode::kPeerLost) {
        EXPECT_LT(report.took_ms, kQuicklyMs);
      } else {
        EXPECT_GE(report.took_ms, kShortTimeout.count() / 2);
        EXPECT_LT(report.took_ms, kShortTimeout.count() + kSlackMs);
      }
    }
  }

  static void expect_nothing_left() {
    EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1);
    EXPECT_EQ(errno, ECHILD);
    EXPECT_TRUE(named_shared_memory().empty()) << named_shared_memory().front();
    EXPECT_TRUE(shared_memory_of_this_process().empty());
  }
};

// ---- Ranks that end -------------------------------------------------------------------------------------------------

class PeerEnds : public PeerFailure, public ::testing::WithParamInterface<std::tuple<std::string, Fault, int, Step>> {};

TEST_P(PeerEnds, SurvivorsNameItQuickly) {
  const auto& [dispatcher, fault, victim, step] = GetParam();
  const Failure failure{dispatcher, step, fault, victim};
  ReportingChildren children = start(failure, kLongTimeout);
  expect_survivors(children, failure, ErrorCode::kPeerLost);
  const int status = children.wait(static_cast<std::size_t>(victim));
  if (fault == Fault::kKill) {
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
  } else {
    EXPECT_EQ(status, 0);
  }
  expect_nothing_left();
}

INSTANTIATE_TEST_SUITE_P(All, PeerEnds,
                         ::testing::Combine(::testing::ValuesIn(fast_dispatcher_names()),
                                            ::testing::Values(Fault::kKill, Fault::kExit), ::testing::Values(0, 2),
                                            ::testing::ValuesIn(kSteps)),
                         [](const auto& param_info) {
                           return std::get<0>(param_info.param) + "_rank" +
                                  std::to_string(std::get<2>(param_info.param)) +
                                  (std::get<1>(param_info.param) == Fault::kKill ? "_killed_" : "_exits_") +
                                  to_text(std::get<3>(param_info.param));
                         });

// Links between declared domains: whoever waits for a chunk, for its own to be taken or for rows to be passed on, names
// the rank, and knows what it owes.
TEST_F(PeerFailure, SurvivorsInTwoDomainsKnowWhatIsMissing) {
  for (const Step step : {Step::kDispatchSend, Step::kInsideDispatch, Step::kDispatchReceive, Step::kCombineSend}) {
    for (const int victim : {0, 3}) {
      SCOPED_TRACE(to_text(step) + ", rank " + std::to_string(victim));
      const Failure failure{"hybrid", step, Fault::kKill, victim, 2};
      ReportingChildren children = start(failure, kLongTimeout);
      expect_survivors(children, failure, ErrorCode::kPeerLost);
    }
  }
}

// A rank that destroys its group and dispatcher has left, even if its process lives on.
TEST_F(PeerFailure, RankThatLeavesTheGroupIsNamed) {
  for (const Step step : {Step::kCreate, Step::kLayout, Step::kDispatchReceive, Step::kCombineReceive}) {
    SCOPED_TRACE(to_text(step));
    const Failure failure{"direct", step, Fault::kExit, 2};
    const std::string job = unique_job();
    std::vector<ReportingChildren::Body> bodies;
    for (int rank = 0; rank < kNumRanks; ++rank) {
      const LaunchInfo info{.rank = rank, .num_ranks = kNumRanks, .job = job};
      bodies.emplace_back([=](ChildReport& report) {
        play_rank_of(failure, info, kLongTimeout, report);
        if (rank == failure.victim) ::pause();
      });
    }
    ReportingChildren children(bodies);
    expect_survivors(children, failure, ErrorCode::kPeerLost);
  }
}

// ---- Ranks that stop ------------------------------------------------------------------------------------------------

class PeerStalls : public PeerFailure, public ::testing::WithParamInterface<std::tuple<std::string, int, Step>> {
 protected:
  Failure failure() const {
    const auto& [dispatcher, victim, step] = GetParam();
    return {dispatcher, step, Fault::kStop, victim};
  }
};

TEST_P(PeerStalls, SurvivorsNameItAfterTheTimeout) {
  ReportingChildren children = start(failure(), kShortTimeout);
  expect_survivors(children, failure(), ErrorCode::kTimeout);
  const auto victim = static_cast<std::size_t>(failure().victim);
  ASSERT_TRUE(children.wait_stopped(victim));
  children.send(victim, SIGKILL);
  const int status = children.wait(victim);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
  expect_nothing_left();
}

TEST_P(PeerStalls, TheStalledRankIsToldWhenItGoesOn) {
  ReportingChildren children = start(failure(), kShortTimeout);
  const auto victim = static_cast<std::size_t>(failure().victim);
  ASSERT_TRUE(children.wait_stopped(victim));
  expect_survivors(children, failure(), ErrorCode::kTimeout);
  children.send(victim, SIGCONT);
  ASSERT_EQ(children.wait(victim), 0);
  const ChildReport& report = children.report(victim);
  ASSERT_TRUE(report.threw);
  EXPECT_EQ(report.code, ErrorCode::kTimeout) << report.message;
  EXPECT_EQ(report.peer_rank, failure().victim);
  EXPECT_EQ(report.phase, phase_of(failure())) << report.message;
  EXPECT_EQ(report.progress, static_cast<int>(failing_call_of(failure().step))) << "it went on alone";
  EXPECT_NE(std::string(report.message).find("was given up by rank"), std::string::npos) << report.message;
  EXPECT_FALSE(report.has_shared_memory);
  expect_nothing_left();
}

std::string stall_name(const ::testing::TestParamInfo<PeerStalls::ParamType>& info) {
  const auto& [dispatcher, victim, step] = info.param;
  return dispatcher + "_rank" + std::to_string(victim) + "_" + to_text(step);
}

// Agreed on before rows are sent, and with them: two ways to wait.
INSTANTIATE_TEST_SUITE_P(All, PeerStalls,
                         ::testing::Combine(::testing::Values("direct"), ::testing::Values(0, 2),
                                            ::testing::ValuesIn(kSteps)),
                         stall_name);
INSTANTIATE_TEST_SUITE_P(OneStep, PeerStalls,
                         ::testing::Combine(::testing::Values("low_latency"), ::testing::Values(2),
                                            ::testing::ValuesIn(kSteps)),
                         stall_name);

// Nobody fails: nobody complains, and nothing is left either.
TEST_F(PeerFailure, NobodyFails) {
  ReportingChildren children = start({"direct", Step::kCreate, Fault::kKill, -1}, kLongTimeout);
  for (std::size_t rank = 0; rank < kNumRanks; ++rank) {
    ASSERT_EQ(children.wait(rank), 0);
    EXPECT_FALSE(children.report(rank).threw) << children.report(rank).message;
    EXPECT_FALSE(children.report(rank).has_shared_memory);
  }
  expect_nothing_left();
}

}  // namespace
}  // namespace epistle::testing
