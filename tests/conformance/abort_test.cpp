// poll(), suspects() and abort(): what a rank can know and do without waiting, on every kind of group.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"

#include "support/dispatcher_names.hpp"
#include "support/process_ranks.hpp"
#include "support/round_trip.hpp"
#include "support/shared_array.hpp"

namespace epistle::testing {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr int kRanks = 3;
constexpr int kAborting = 2;
constexpr int kLate = 1;
// Nobody may be seen to wait as long as this.
constexpr milliseconds kTimeout{20'000};
// An abort must be known everywhere by then.
constexpr milliseconds kDeadline{5'000};
constexpr milliseconds kPause{50};

Scenario abort_scenario() {
  Scenario scenario;
  scenario.config = {.hidden = 32, .num_experts = 7, .top_k = 2, .max_tokens = 12};
  scenario.tokens_per_rank = {5, 8, 12};
  scenario.missing_probability = 0.0;
  return scenario;
}

/// The call in which the others wait for the late rank.
enum class Stuck { kPrepare, kDispatch, kDispatchReceive, kCombine, kGroup };

std::string name_of(Stuck stuck) {
  constexpr const char* kNames[] = {"Prepare", "Dispatch", "DispatchReceive", "Combine", "Group"};
  return kNames[static_cast<int>(stuck)];
}

/// What a rank saw; plain, so that processes can leave it to their parent.
struct Report {
  bool threw = false;
  ErrorCode code = ErrorCode::kOk;
  int peer_rank = -1;
  char message[400] = {};
  std::int64_t waited_ms = 0;
  Health before = Health::kBroken;
  Health after = Health::kOk;
  int num_suspects = -1;
  int suspect = -1;
  ErrorCode later = ErrorCode::kOk;  ///< of a call after that
};

void note(const Outcome& outcome, Report& report) {
  if (!outcome) return;
  report.threw = true;
  report.code = outcome->code();
  report.peer_rank = outcome->context().peer_rank;
  std::strncpy(report.message, outcome->what(), sizeof(report.message) - 1);
}

void note_health(const Dispatcher& dispatcher, Report& report) {
  report.after = dispatcher.poll();
  const std::vector<int> suspects = dispatcher.suspects();
  report.num_suspects = static_cast<int>(suspects.size());
  // Ranks that have seen enough leave as well, so the late one may not be the only one that is gone.
  const bool has_late = std::find(suspects.begin(), suspects.end(), kLate) != suspects.end();
  if (!suspects.empty()) report.suspect = has_late ? kLate : suspects.front();
}

/// Waits until something has happened to the group: poll() sees it without a call.
void wait_for_trouble(const Dispatcher& dispatcher) {
  const auto give_up = Clock::now() + kDeadline;
  while (dispatcher.poll() == Health::kOk && Clock::now() < give_up) std::this_thread::sleep_for(milliseconds(1));
}

/// Everything up to `stuck`, where all wait for the late rank.
void call_until(Group& group, Dispatcher& dispatcher, RankInputs& inputs, Stuck stuck,
                const std::function<void()>& before) {
  if (stuck == Stuck::kGroup || stuck == Stuck::kPrepare) {
    before();
    if (stuck == Stuck::kGroup) return group.barrier();
    return (void)dispatcher.prepare(inputs.prepare());
  }
  const Handle handle = dispatcher.prepare(inputs.prepare());
  if (stuck == Stuck::kDispatchReceive) {
    Pending pending = dispatcher.dispatch_send(inputs.dispatch(handle));
    before();
    (void)dispatcher.dispatch_receive(std::move(pending));
    // The half above may have had all it needed; nobody gets past this one.
    return group.barrier();
  }
  if (stuck == Stuck::kDispatch) {
    before();
    return (void)dispatcher.dispatch(inputs.dispatch(handle));
  }
  const Received received = dispatcher.dispatch(inputs.dispatch(handle));
  before();
  RowsBuffer out = inputs.sums();
  dispatcher.combine({.received = received, .out = out.view()});
}

/// One rank's part. The aborting rank calls abort() on another thread than the one that waits in a call.
void play_abort(Group& group, const std::string& name, Stuck stuck, Report& report) {
  const Scenario scenario = abort_scenario();
  const Round round(scenario, 0);
  RankInputs inputs(round, group.rank());
  Dispatcher dispatcher(group, name, scenario.config);
  report.before = dispatcher.poll();
  if (!dispatcher.suspects().empty()) report.before = Health::kBroken;
  group.barrier();
  std::thread aborter;
  const auto start = Clock::now();
  note(outcome_of([&] {
         call_until(group, dispatcher, inputs, stuck, [&] {
           if (group.rank() == kLate) wait_for_trouble(dispatcher);
           if (group.rank() != kAborting) return;
           aborter = std::thread([&dispatcher] {
             std::this_thread::sleep_for(kPause);
             dispatcher.abort();
           });
         });
       }),
       report);
  if (aborter.joinable()) aborter.join();
  report.waited_ms = std::chrono::duration_cast<milliseconds>(Clock::now() - start).count();
  note_health(dispatcher, report);
  const Outcome later = outcome_of([&] { (void)dispatcher.prepare(inputs.prepare()); });
  report.later = later ? later->code() : ErrorCode::kOk;
}

void expect_aborted(const Report& report, int rank) {
  SCOPED_TRACE("rank " + std::to_string(rank));
  EXPECT_EQ(report.before, Health::kOk);
  ASSERT_TRUE(report.threw);
  EXPECT_EQ(report.code, ErrorCode::kAborted) << report.message;
  EXPECT_EQ(report.peer_rank, kAborting) << report.message;
  const std::string name = rank == kAborting ? "this rank" : "rank " + std::to_string(kAborting);
  EXPECT_NE(std::string(report.message).find(name), std::string::npos) << report.message;
  EXPECT_NE(std::string(report.message).find("abort"), std::string::npos) << report.message;
  EXPECT_LT(report.waited_ms, kDeadline.count()) << report.message;
  EXPECT_EQ(report.after, Health::kAborted);
  EXPECT_EQ(report.num_suspects, 1);
  EXPECT_EQ(report.suspect, kAborting);
  EXPECT_EQ(report.later, ErrorCode::kAborted);
}

class Aborts : public ::testing::TestWithParam<std::tuple<std::string, Stuck>> {};

TEST_P(Aborts, EndEveryWaitOfThreads) {
  const auto& [name, stuck] = GetParam();
  std::vector<Report> reports(kRanks);
  run_thread_ranks(kRanks,
                   [&, &dispatcher = name, call = stuck](Group& group) {
                     play_abort(group, dispatcher, call, reports[static_cast<std::size_t>(group.rank())]);
                   },
                   {.timeout = kTimeout});
  for (int rank = 0; rank < kRanks; ++rank) expect_aborted(reports[static_cast<std::size_t>(rank)], rank);
}

TEST_P(Aborts, EndEveryWaitOfProcesses) {
  const auto& [name, stuck] = GetParam();
  const SharedArray<Report> reports(kRanks);
  const auto exits =
      run_process_ranks(kRanks,
                        [&, &dispatcher = name, call = stuck](Group& group) {
                          play_abort(group, dispatcher, call, reports[static_cast<std::size_t>(group.rank())]);
                          return 0;
                        },
                        {.timeout = kTimeout});
  for (int rank = 0; rank < kRanks; ++rank) {
    EXPECT_EQ(exits[static_cast<std::size_t>(rank)], 0) << "exit of rank " << rank;
    expect_aborted(reports[static_cast<std::size_t>(rank)], rank);
  }
}

INSTANTIATE_TEST_SUITE_P(All, Aborts,
                         ::testing::Combine(::testing::ValuesIn(dispatcher_names()),
                                            ::testing::Values(Stuck::kPrepare, Stuck::kDispatch,
                                                              Stuck::kDispatchReceive, Stuck::kCombine, Stuck::kGroup)),
                         [](const auto& param_info) {
                           return std::get<0>(param_info.param) + "_" + name_of(std::get<1>(param_info.param));
                         });

// ---- poll() ---------------------------------------------------------------------------------------------------------

class Polls : public ::testing::TestWithParam<std::string> {};

/// A rank that leaves after a barrier; the others only poll.
void watch_a_leaving_rank(Group& group, const std::string& name, Report& report) {
  const Scenario scenario = abort_scenario();
  const Dispatcher dispatcher(group, name, scenario.config);
  report.before = dispatcher.poll();
  group.barrier();
  if (group.rank() == kLate) return;
  wait_for_trouble(dispatcher);
  note_health(dispatcher, report);
}

void expect_lost(const Report& report, int rank) {
  SCOPED_TRACE("rank " + std::to_string(rank));
  EXPECT_EQ(report.before, Health::kOk);
  if (rank == kLate) return;
  EXPECT_EQ(report.after, Health::kPeerLost);
  EXPECT_GE(report.num_suspects, 1);
  EXPECT_EQ(report.suspect, kLate);
}

TEST_P(Polls, SeeAThreadLeave) {
  std::vector<Report> reports(kRanks);
  // A rank that returns while others are polling is noticed when it gives up its place in the group.
  std::vector<Group> groups = make_thread_groups(kRanks, {.timeout = kTimeout});
  std::vector<std::thread> threads;
  for (int rank = 0; rank < kRanks; ++rank) {
    threads.emplace_back([&, rank, own = std::move(groups[static_cast<std::size_t>(rank)])]() mutable {
      Group group = std::move(own);
      watch_a_leaving_rank(group, GetParam(), reports[static_cast<std::size_t>(rank)]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int rank = 0; rank < kRanks; ++rank) expect_lost(reports[static_cast<std::size_t>(rank)], rank);
}

TEST_P(Polls, SeeAProcessExit) {
  const SharedArray<Report> reports(kRanks);
  const auto exits =
      run_process_ranks(kRanks,
                        [&](Group& group) {
                          watch_a_leaving_rank(group, GetParam(), reports[static_cast<std::size_t>(group.rank())]);
                          if (group.rank() == kLate) ::_exit(0);  // nothing is destroyed on the way
                          return 0;
                        },
                        {.timeout = kTimeout});
  for (int rank = 0; rank < kRanks; ++rank) {
    EXPECT_EQ(exits[static_cast<std::size_t>(rank)], 0) << "exit of rank " << rank;
    expect_lost(reports[static_cast<std::size_t>(rank)], rank);
  }
}

TEST_P(Polls, KnowWhoWasLate) {
  constexpr milliseconds kShort{300};
  std::vector<Report> reports(kRanks);
  std::atomic<int> num_done{0};
  run_thread_ranks(kRanks,
                   [&](Group& group) {
                     Report& report = reports[static_cast<std::size_t>(group.rank())];
                     const Scenario scenario = abort_scenario();
                     const Round round(scenario, 0);
                     RankInputs inputs(round, group.rank());
                     Dispatcher dispatcher(group, GetParam(), scenario.config);
                     if (group.rank() == kLate) {
                       const auto give_up = Clock::now() + kDeadline;
                       while (num_done < kRanks - 1 && Clock::now() < give_up) std::this_thread::sleep_for(kPause);
                     }
                     note(outcome_of([&] { (void)dispatcher.prepare(inputs.prepare()); }), report);
                     note_health(dispatcher, report);
                     ++num_done;
                   },
                   {.timeout = kShort});
  for (const Report& report : reports) {
    ASSERT_TRUE(report.threw);
    EXPECT_EQ(report.code, ErrorCode::kTimeout) << report.message;
    EXPECT_EQ(report.after, Health::kTimeout);
    EXPECT_EQ(report.suspect, kLate);
  }
}

TEST_P(Polls, AreAnsweredWhileACallIsUnderWay) {
  run_thread_ranks(kRanks, [&](Group& group) {
    const Scenario scenario = abort_scenario();
    Subject subject(group, GetParam(), scenario.config);
    std::atomic<bool> done{false};
    std::atomic<std::int64_t> num_polls{0};
    std::thread poller([&] {
      while (!done) {
        EXPECT_EQ(subject.dispatcher().poll(), Health::kOk);
        EXPECT_TRUE(subject.dispatcher().suspects().empty());
        ++num_polls;
      }
    });
    while (num_polls == 0) std::this_thread::yield();  // the calls would be over before the thread has started
    for (int idx = 0; idx < 20; ++idx) {
      const Mismatch mismatch = round_trip(subject, Round(scenario, idx));
      EXPECT_FALSE(mismatch.has_value()) << *mismatch;
    }
    done = true;
    poller.join();
    group.barrier();  // a rank that leaves is lost for those that still poll
  });
}

INSTANTIATE_TEST_SUITE_P(All, Polls, ::testing::ValuesIn(dispatcher_names()),
                         [](const auto& param_info) { return param_info.param; });

}  // namespace
}  // namespace epistle::testing
