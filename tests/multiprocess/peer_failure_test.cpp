// A rank that is killed, exits or stops, before and inside every call: the others get a typed error in time, name it,
// and leave nothing behind.
#include <cerrno>
#include <chrono>
#include <csignal>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include <sys/wait.h>

#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"
#include "epistle/group.hpp"

#include "multiprocess/fault.hpp"
#include "multiprocess/reporting_children.hpp"
#include "support/process_ranks.hpp"
#include "support/scenario.hpp"

namespace epistle::testing {
namespace {

constexpr int kNumRanks = 4;
// A death must be seen long before the timeout, so that it cannot have been the timeout that was seen.
constexpr std::chrono::milliseconds kLongTimeout{20'000};
constexpr std::int64_t kQuicklyMs = 5'000;
constexpr std::chrono::milliseconds kShortTimeout{600};
constexpr std::int64_t kSlackMs = 5'000;

/// Where the victim fails.
enum class Step {
  kCreate,
  kLayout,
  kDispatchSend,
  kInsideDispatch,  ///< its payload is being read: it agreed to the call, and its rows are missing
  kDispatchReceive,
  kCombineSend,
  kInsideCombine,  ///< its expert outputs are being read
  kCombineReceive,
  kInsideSums,  ///< its results are being written
};

constexpr Step kSteps[] = {Step::kCreate,         Step::kLayout,          Step::kDispatchSend,
                           Step::kInsideDispatch, Step::kDispatchReceive, Step::kCombineSend,
                           Step::kInsideCombine,  Step::kCombineReceive,  Step::kInsideSums};

std::string to_text(Step step) {
  constexpr const char* kNames[] = {"Create",         "Layout",          "DispatchSend",
                                    "InsideDispatch", "DispatchReceive", "CombineSend",
                                    "InsideCombine",  "CombineReceive",  "InsideSums"};
  return kNames[static_cast<int>(step)];
}

/// The phase in which the others wait for a victim that failed at `step`. What it has sent before counts.
Phase phase_of(Step step) {
  switch (step) {
    case Step::kCreate:
      return Phase::kCreate;
    case Step::kLayout:
      return Phase::kLayout;
    case Step::kDispatchSend:
    case Step::kInsideDispatch:
      return Phase::kDispatch;
    default:
      return Phase::kCombine;
  }
}

Scenario scenario_of_failures() {
  Scenario scenario;
  scenario.config = {.hidden = 64, .num_experts = 8, .top_k = 3, .max_tokens = 40};
  scenario.tokens_per_rank = {20, 40, 15, 7};
  return scenario;
}

/// Rows that `source` sends to `destination`: tokens with an expert there.
std::int64_t num_pairs(const Play& play, int source, int destination) {
  const RoutingTable& table = play.table(source);
  std::int64_t pairs = 0;
  for (std::int64_t token = 0; token < table.num_tokens; ++token) {
    bool goes_there = false;
    for (std::int64_t idx = token * table.top_k; idx < (token + 1) * table.top_k; ++idx) {
      goes_there = goes_there || play.is_local(destination, table.expert_ids[static_cast<std::size_t>(idx)]);
    }
    if (goes_there) ++pairs;
  }
  return pairs;
}

std::int64_t missing_rows_of(Step step, int victim, int rank) {
  const Play play(scenario_of_failures(), 0);
  if (step == Step::kInsideDispatch) return num_pairs(play, victim, rank);
  if (step == Step::kInsideCombine) return num_pairs(play, rank, victim);
  return -1;  // the wait is not for rows
}

struct Case {
  std::string dispatcher;
  Step step;
  Fault fault;
  int victim;
};

/// The victim ends, as a program does that returns from its main: everything is destroyed on the way.
struct LeaveEarly {};

/// One rank's program.
class RankProgram {
 public:
  RankProgram(const Case& failure, LaunchInfo info, std::chrono::milliseconds timeout)
      : failure_(failure), info_(std::move(info)), timeout_(timeout) {}

  void run() const {
    try {
      play();
    } catch (const LeaveEarly&) {
    }
  }

 private:
  [[nodiscard]] bool fails_at(Step step) const { return info_.rank == failure_.victim && step == failure_.step; }

  void at(Step step) const {
    if (!fails_at(step)) return;
    if (failure_.fault == Fault::kExit) throw LeaveEarly();
    fail_now(failure_.fault);
  }

  /// `own`, or memory of that size at whose first access the victim fails.
  std::byte* failing_at(Step step, std::vector<std::byte>& own, std::unique_ptr<FaultingBuffer>& buffer) const {
    if (!fails_at(step)) return own.data();
    buffer = std::make_unique<FaultingBuffer>(own.size(), failure_.fault);
    return buffer->data();
  }

  void play() const {
    const Scenario scenario = scenario_of_failures();
    const Play play(scenario, 0);
    const RoutingTable& table = play.table(info_.rank);
    std::unique_ptr<FaultingBuffer> buffer;
    Group group = join_process_group(info_, {.timeout = timeout_});
    at(Step::kCreate);
    const auto dispatcher = make_dispatcher(failure_.dispatcher, group, scenario.config);
    at(Step::kLayout);
    const Handle handle = dispatcher->prepare(table.view());
    at(Step::kDispatchSend);
    auto payload = play.payload(info_.rank);
    dispatcher->dispatch_send(
        handle, {.rows = failing_at(Step::kInsideDispatch, payload, buffer), .num_tokens = table.num_tokens});
    at(Step::kDispatchReceive);
    (void)dispatcher->dispatch_receive(handle);
    at(Step::kCombineSend);
    auto rows = play.values(1, info_.rank, handle.output().num_rows);
    dispatcher->combine_send(handle, failing_at(Step::kInsideCombine, rows, buffer));
    at(Step::kCombineReceive);
    std::vector<std::byte> out(static_cast<std::size_t>(table.num_tokens * play.combine_row_bytes()));
    dispatcher->combine_receive(handle, failing_at(Step::kInsideSums, out, buffer),
                                static_cast<std::int64_t>(out.size()));
    group.barrier();
  }

  Case failure_;
  LaunchInfo info_;
  std::chrono::milliseconds timeout_;
};

class PeerFailure : public ::testing::Test {
 protected:
  static ReportingChildren start(const Case& failure, std::chrono::milliseconds timeout) {
    const std::string job = unique_job();
    std::vector<ReportingChildren::Body> bodies;
    for (int rank = 0; rank < kNumRanks; ++rank) {
      const LaunchInfo info{.rank = rank, .num_ranks = kNumRanks, .job = job};
      bodies.emplace_back([failure, info, timeout] { RankProgram(failure, info, timeout).run(); });
    }
    return ReportingChildren(bodies);
  }

  static void expect_survivors(ReportingChildren& children, const Case& failure, ErrorCode code) {
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
      EXPECT_EQ(report.phase, phase_of(failure.step)) << report.message;
      EXPECT_EQ(report.missing_rows, missing_rows_of(failure.step, failure.victim, rank)) << report.message;
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
  const Case failure{dispatcher, step, fault, victim};
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
                         ::testing::Combine(::testing::Values("direct", "alltoall"),
                                            ::testing::Values(Fault::kKill, Fault::kExit), ::testing::Values(0, 2),
                                            ::testing::ValuesIn(kSteps)),
                         [](const auto& param_info) {
                           return std::get<0>(param_info.param) + "_rank" +
                                  std::to_string(std::get<2>(param_info.param)) +
                                  (std::get<1>(param_info.param) == Fault::kKill ? "_killed_" : "_exits_") +
                                  to_text(std::get<3>(param_info.param));
                         });

// ---- Ranks that stop ------------------------------------------------------------------------------------------------

class PeerStalls : public PeerFailure, public ::testing::WithParamInterface<std::tuple<int, Step>> {
 protected:
  Case failure() const { return {"direct", std::get<1>(GetParam()), Fault::kStop, std::get<0>(GetParam())}; }
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
  EXPECT_EQ(report.phase, phase_of(failure().step)) << report.message;
  EXPECT_NE(std::string(report.message).find("was given up by rank"), std::string::npos) << report.message;
  EXPECT_FALSE(report.has_shared_memory);
  expect_nothing_left();
}

INSTANTIATE_TEST_SUITE_P(All, PeerStalls, ::testing::Combine(::testing::Values(0, 2), ::testing::ValuesIn(kSteps)),
                         [](const auto& param_info) {
                           return "rank" + std::to_string(std::get<0>(param_info.param)) + "_" +
                                  to_text(std::get<1>(param_info.param));
                         });

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
