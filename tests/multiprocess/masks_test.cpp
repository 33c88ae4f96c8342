// Ranks that are killed or stopped in the middle of a call, and the others that go on without them: every bit of what
// they give is checked, also while the one that was stopped goes on where it was.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <iostream>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include <sys/wait.h>

#include <gtest/gtest.h>

#include "epistle/group.hpp"

#include "multiprocess/rank_program.hpp"
#include "support/dispatcher_names.hpp"
#include "support/go_on.hpp"
#include "support/process_ranks.hpp"
#include "support/round_trip.hpp"
#include "support/shared_array.hpp"

namespace epistle::testing {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kLongWait{20'000};
constexpr milliseconds kShortWait{1'000};
// ChildReport::progress: what is below tells how far the calls have come in which one fails.
constexpr int kTrips = 1'000;      ///< and round trips without the victim
constexpr int kAllBack = 100'000;  ///< round trips of all
constexpr int kNothingFailed = -1;

/// What the test tells its ranks.
enum Told : int { kNothing, kStop, kComeBack };
using Word = std::atomic<int>;

Scenario scenario_in(const Group& group) {
  Scenario scenario = scenario_of_failures();
  scenario.domain_size = group.domain_size();
  if (group.num_domains() > 1) scenario.config.order = SumOrder::kDomains;
  return scenario;
}

/// A round trip under the mask in force, compared with the oracle.
void expect_round_trip(Subject& subject, int idx) {
  Scenario scenario = scenario_in(subject.group());
  scenario.masked = subject.group().masked();
  if (const Mismatch mismatch = round_trip(subject, Round(scenario, idx))) {
    std::cerr << "rank " << subject.group().rank() << ": " << *mismatch << std::endl;
    throw std::runtime_error("a bit differs");
  }
}

/// What all ranks that are left have been told: the most that one of them has.
int heard_by_all(Group& group, const Word& word) {
  std::vector<int> all(static_cast<std::size_t>(group.size()));
  const int own = word.load();
  group.all_gather(&own, sizeof(own), all.data());
  return *std::max_element(all.begin(), all.end());
}

/// Makes round trips until the test says something; their number goes to the report.
int trips_until_told(Subject& subject, const Word& word, ChildReport& report) {
  report.progress = kTrips;
  for (;;) {
    expect_round_trip(subject, report.progress - kTrips);
    ++report.progress;
    if (const int told = heard_by_all(subject.group(), word); told != kNothing) return told;
  }
}

/// One rank of a group in which one fails.
void play_with_failure(const Failure& failure, const LaunchInfo& info, milliseconds timeout, const Word& word,
                       ChildReport& report) {
  Group group = join_process_group(info, {.timeout = timeout});
  Subject subject(group, failure.dispatcher, scenario_of_failures().config);
  expect_round_trip(subject, 0);
  try {
    make_failing_calls(failure, info.rank, subject.dispatcher(), report);
    group.barrier();
    report.progress = kNothingFailed;
    return;
  } catch (const Error& error) {
    if (info.rank == failure.victim) {
      if (failure.fault != Fault::kStop || word.load() != kComeBack) throw;
      if (error.code() != ErrorCode::kMaskedOut) throw;
      group.clear_mask();
    } else {
      go_on_without(group, error);
      if (trips_until_told(subject, word, report) == kStop) return;
      group.clear_mask();
    }
  }
  for (int idx = 0; idx < 3; ++idx) expect_round_trip(subject, 50 + idx);
  report.progress = kAllBack;
}

class MaskedRanks : public ::testing::TestWithParam<std::tuple<std::string, int, Step>> {
 protected:
  MaskedRanks() : words_(1) { word().store(kNothing); }

  [[nodiscard]] Word& word() const { return words_[0]; }
  [[nodiscard]] Failure failure(Fault fault) const {
    const auto& [dispatcher, victim, step] = GetParam();
    return {dispatcher, step, fault, victim};
  }

  [[nodiscard]] ReportingChildren start(const Failure& failure, milliseconds timeout) const {
    const std::string job = unique_job();
    std::vector<ReportingChildren::Body> bodies;
    for (int rank = 0; rank < kNumRanks; ++rank) {
      const LaunchInfo info{.rank = rank, .num_ranks = kNumRanks, .job = job};
      bodies.emplace_back([this, failure, info, timeout](ChildReport& report) {
        play_with_failure(failure, info, timeout, word(), report);
      });
    }
    return ReportingChildren(bodies);
  }

  /// Until every survivor has come so far.
  static void wait_for_trips(const ReportingChildren& children, int victim, int wanted) {
    const auto give_up = std::chrono::steady_clock::now() + kLongWait;
    for (std::size_t rank = 0; rank < kNumRanks; ++rank) {
      const volatile int& progress = children.report(rank).progress;
      while (static_cast<int>(rank) != victim && progress < wanted && std::chrono::steady_clock::now() < give_up) {
        std::this_thread::sleep_for(milliseconds(1));
      }
    }
  }

  static void expect_survivors(ReportingChildren& children, int victim, int wanted) {
    for (int rank = 0; rank < kNumRanks; ++rank) {
      if (rank == victim) continue;
      SCOPED_TRACE("survivor " + std::to_string(rank));
      const auto idx = static_cast<std::size_t>(rank);
      ASSERT_EQ(children.wait(idx), 0);
      EXPECT_FALSE(children.report(idx).threw) << children.report(idx).message;
      EXPECT_GE(children.report(idx).progress, wanted);
      EXPECT_FALSE(children.report(idx).has_shared_memory);
    }
  }

 private:
  SharedArray<Word> words_;
};

class KilledRanks : public MaskedRanks {};

TEST_P(KilledRanks, LeaveTheOthersWithEveryBitRight) {
  const Failure killed = failure(Fault::kKill);
  ReportingChildren children = start(killed, kLongWait);
  wait_for_trips(children, killed.victim, kTrips + 3);
  word().store(kStop);
  expect_survivors(children, killed.victim, kTrips + 3);
}

class StoppedRanks : public MaskedRanks {};

TEST_P(StoppedRanks, ChangeNothingWhenTheyWakeAndAreTold) {
  const Failure stopped = failure(Fault::kStop);
  ReportingChildren children = start(stopped, kShortWait);
  const auto victim = static_cast<std::size_t>(stopped.victim);
  ASSERT_TRUE(children.wait_stopped(victim));
  wait_for_trips(children, stopped.victim, kTrips + 2);
  // It goes on where it was, beside the calls of the others.
  children.send(victim, SIGCONT);
  ASSERT_EQ(children.wait(victim), 0);
  const ChildReport& report = children.report(victim);
  ASSERT_TRUE(report.threw);
  EXPECT_EQ(report.code, ErrorCode::kMaskedOut) << report.message;
  EXPECT_NE(std::string(report.message).find("go on without this one"), std::string::npos) << report.message;
  wait_for_trips(children, stopped.victim, children.report(stopped.victim == 0 ? 1 : 0).progress + 2);
  word().store(kStop);
  expect_survivors(children, stopped.victim, kTrips + 4);
}

TEST_P(StoppedRanks, ComeBack) {
  const Failure stopped = failure(Fault::kStop);
  ReportingChildren children = start(stopped, kShortWait);
  const auto victim = static_cast<std::size_t>(stopped.victim);
  ASSERT_TRUE(children.wait_stopped(victim));
  wait_for_trips(children, stopped.victim, kTrips + 2);
  word().store(kComeBack);
  children.send(victim, SIGCONT);
  expect_survivors(children, stopped.victim, kAllBack);
  ASSERT_EQ(children.wait(victim), 0);
  EXPECT_FALSE(children.report(victim).threw) << children.report(victim).message;
  EXPECT_EQ(children.report(victim).progress, kAllBack);
}

std::string case_name(const ::testing::TestParamInfo<MaskedRanks::ParamType>& info) {
  const auto& [dispatcher, victim, step] = info.param;
  return dispatcher + "_rank" + std::to_string(victim) + "_" + to_text(step);
}

INSTANTIATE_TEST_SUITE_P(All, KilledRanks,
                         ::testing::Combine(::testing::Values("direct", "low_latency", "alltoall"),
                                            ::testing::Values(0, 2),
                                            ::testing::Values(Step::kLayout, Step::kInsideDispatch,
                                                              Step::kInsideCombine, Step::kInsideSums)),
                         case_name);
INSTANTIATE_TEST_SUITE_P(All, StoppedRanks,
                         ::testing::Combine(::testing::Values("direct", "low_latency"), ::testing::Values(0, 2),
                                            ::testing::Values(Step::kInsideDispatch, Step::kInsideCombine)),
                         case_name);

// ---- Random kills ---------------------------------------------------------------------------------------------------

/// Round trips for as long as the test wants, whoever goes meanwhile.
void play_until_told(const std::string& dispatcher, const LaunchInfo& info, const Word& word, ChildReport& report) {
  // Ranks that pass on rows of others are among those that go.
  Group group = join_process_group(info, {.timeout = kLongWait, .domain_size = dispatcher == "hybrid" ? 2 : 0});
  Subject subject(group, dispatcher, scenario_in(group).config);
  for (int idx = 0;;) {
    try {
      // A failure may have left some ranks a round ahead of others.
      std::vector<int> all(static_cast<std::size_t>(group.size()));
      group.all_gather(&idx, sizeof(idx), all.data());
      idx = *std::max_element(all.begin(), all.end()) + 1;
      expect_round_trip(subject, idx);
      report.progress = idx;
      if (heard_by_all(group, word) != kNothing) return;
    } catch (const Error& error) {
      go_on_without(group, error);
    }
  }
}

TEST(RandomKills, LeaveTheOthersWithEveryBitRight) {
  const char* const trials = std::getenv("EPISTLE_TEST_TRIALS");
  const int num_trials = trials != nullptr ? std::atoi(trials) : 6;
  std::mt19937 random(20261128);
  const std::vector<std::string> dispatchers = {"direct", "low_latency", "alltoall", "auto", "hybrid"};
  for (int trial = 0; trial < num_trials; ++trial) {
    SCOPED_TRACE("trial " + std::to_string(trial));
    const std::string& dispatcher = dispatchers[static_cast<std::size_t>(trial) % dispatchers.size()];
    const SharedArray<Word> words(1);
    words[0].store(kNothing);
    const std::string job = unique_job();
    std::vector<ReportingChildren::Body> bodies;
    for (int rank = 0; rank < kNumRanks; ++rank) {
      bodies.emplace_back([&words, dispatcher, info = LaunchInfo{.rank = rank, .num_ranks = kNumRanks, .job = job}](
                              ChildReport& report) { play_until_told(dispatcher, info, words[0], report); });
    }
    ReportingChildren children(bodies);
    std::vector<std::size_t> alive = {0, 1, 2, 3};
    const auto all_reach = [&](int progress) {
      const auto give_up = std::chrono::steady_clock::now() + kLongWait;
      for (const std::size_t rank : alive) {
        const volatile int& reached = children.report(rank).progress;
        while (reached < progress && std::chrono::steady_clock::now() < give_up) {
          std::this_thread::sleep_for(milliseconds(1));
        }
      }
    };
    all_reach(1);
    while (alive.size() > 1) {
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 20'000));
      const std::size_t victim = random() % alive.size();
      children.send(alive[victim], SIGKILL);
      alive.erase(alive.begin() + static_cast<std::ptrdiff_t>(victim));
      // Now and then the next one goes while the others are still about the last one.
      if (random() % 2 == 0) all_reach(children.report(alive.front()).progress + 2);
    }
    all_reach(children.report(alive.front()).progress + 2);
    words[0].store(kStop);
    ASSERT_EQ(children.wait(alive.front()), 0);
    EXPECT_FALSE(children.report(alive.front()).threw) << children.report(alive.front()).message;
  }
}

}  // namespace
}  // namespace epistle::testing
