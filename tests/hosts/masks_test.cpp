// Groups over hosts that go on without some of their ranks: hosts that are killed or stand still, ranks that are taken
// out and come back, and dispatchers whose every bit is that of the oracle without them.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "group/net/host_message.hpp"
#include "hosts/host_ranks.hpp"
#include "support/go_on.hpp"
#include "support/round_trip.hpp"
#include "support/shared_array.hpp"

namespace epistle::testing {
namespace {

using std::chrono::milliseconds;

constexpr int kHosts = 3;
constexpr int kRanksEach = 2;
constexpr int kTripsAfter = 6;
// ChildReport::progress: what was done without the masked ranks counts from here.
constexpr int kMasked = 1'000'000;

void expect(bool condition, const std::string& what) {
  if (!condition) throw std::runtime_error(what);
}

/// Numbers of all ranks, 0 of those that are left out. Returns the largest.
int gather_numbers(Group& group, int own) {
  std::vector<int> all(static_cast<std::size_t>(group.size()), -1);
  group.all_gather(&own, sizeof(own), all.data());
  for (const int rank : group.masked()) expect(all[static_cast<std::size_t>(rank)] == 0, "a number of a masked rank");
  return *std::max_element(all.begin(), all.end());
}

/// Plays `work` until ranks are lost, and so often once more without them.
void play_on_without(Group& group, ChildReport& report, int num_trips, const std::function<void(int idx)>& work) {
  int idx = 0;
  for (int done = 0; done < num_trips;) {
    try {
      // A failure may have left some ranks ahead of others.
      idx = gather_numbers(group, idx + 1);
      work(idx);
      if (group.masked().empty()) {
        report.progress = idx;
      } else {
        report.progress = kMasked + ++done;
      }
    } catch (const Error& error) {
      go_on_without(group, error);
      done = 0;
    }
  }
  group.barrier();
}

void wait_for_progress(const ReportingChildren& children, const std::vector<int>& ranks, int wanted) {
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  for (const int rank : ranks) {
    const volatile int& progress = children.report(static_cast<std::size_t>(rank)).progress;
    while (progress < wanted && std::chrono::steady_clock::now() < give_up) {
      std::this_thread::sleep_for(milliseconds(1));
    }
  }
}

std::vector<int> others_than(const std::vector<int>& left_out, int num_hosts = kHosts) {
  std::vector<int> ranks;
  for (int rank = 0; rank < num_hosts * kRanksEach; ++rank) {
    if (std::find(left_out.begin(), left_out.end(), rank) == left_out.end()) ranks.push_back(rank);
  }
  return ranks;
}

void expect_well(ReportingChildren& children, const std::vector<int>& ranks) {
  for (const int rank : ranks) {
    const auto idx = static_cast<std::size_t>(rank);
    EXPECT_EQ(children.wait(idx), 0) << "rank " << rank;
    EXPECT_FALSE(children.report(idx).threw) << "rank " << rank << ": " << children.report(idx).message;
  }
}

using MakeWork = std::function<std::function<void(int)>(Group&)>;

/// Kills ranks in the middle of what all do, and expects that the others end well, with exactly these left out.
void expect_to_go_on(int num_hosts, const std::vector<int>& killed, const MakeWork& make_work) {
  const HostsJob job = make_hosts_job(num_hosts, kRanksEach);
  std::vector<int> masked = killed;
  std::sort(masked.begin(), masked.end());
  ReportingChildren children(host_ranks(job, [&](Group& group, ChildReport& report) {
    const std::function<void(int)> work = make_work(group);
    play_on_without(group, report, kTripsAfter, work);
    expect(group.masked() == masked, "other ranks are masked");
  }));
  wait_for_progress(children, others_than({}, num_hosts), 3);
  for (const int rank : killed) children.send(static_cast<std::size_t>(rank), SIGKILL);
  expect_well(children, others_than(masked, num_hosts));
}

std::function<void(int)> nothing_but_numbers(Group& group) {
  return [&group](int idx) { expect(gather_numbers(group, idx) == idx, "a number that all have told"); };
}

TEST(MasksOverHosts, LeaveOutARankOfAHost) { expect_to_go_on(kHosts, {3}, nothing_but_numbers); }
TEST(MasksOverHosts, LeaveOutAHost) { expect_to_go_on(kHosts, {4, 5}, nothing_but_numbers); }
TEST(MasksOverHosts, LeaveOutTheHostThatDecides) { expect_to_go_on(kHosts, {1, 0}, nothing_but_numbers); }
TEST(MasksOverHosts, LeaveOneHostAlone) { expect_to_go_on(kHosts, {0, 1, 2, 3}, nothing_but_numbers); }

// The other ranks of its host have no way to the others any more, and say so.
TEST(MasksOverHosts, LeaveOutAHostWhoseLeaderHasEnded) {
  const HostsJob job = make_hosts_job(kHosts, kRanksEach);
  ReportingChildren children(host_ranks(job, [](Group& group, ChildReport& report) {
    play_on_without(group, report, kTripsAfter, nothing_but_numbers(group));
    expect(group.masked() == std::vector<int>{2, 3}, "other ranks are masked");
  }));
  wait_for_progress(children, others_than({}), 3);
  children.send(2, SIGKILL);
  expect_well(children, others_than({2, 3}));
  EXPECT_EQ(children.wait(3), 0);
  ASSERT_TRUE(children.report(3).threw);
  EXPECT_EQ(children.report(3).code, ErrorCode::kUnsupported) << children.report(3).message;
  EXPECT_NE(std::string(children.report(3).message).find("rank 2"), std::string::npos) << children.report(3).message;
}

// ---- Ranks that live ------------------------------------------------------------------------------------------------

using Counter = std::atomic<int>;

/// Ranks that wait for each other by other means than the group.
void meet(Counter& counter, int num_ranks) {
  const int generation = counter.fetch_add(1) / num_ranks;
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (counter.load() < (generation + 1) * num_ranks) {
    expect(std::chrono::steady_clock::now() < give_up, "a rank does not come");
    std::this_thread::sleep_for(milliseconds(1));
  }
}

/// All play; then all but `masked`, who are told so; then all again, twice.
void play_in_turns(Group& group, const std::vector<int>& masked, Counter& counter,
                   const std::function<void(int)>& work) {
  const bool is_out = std::find(masked.begin(), masked.end(), group.rank()) != masked.end();
  int idx = 0;
  for (int turn = 0; turn < 2; ++turn) {
    for (int trip = 0; trip < 3; ++trip) work(++idx);
    meet(counter, group.size());
    if (!is_out) group.set_mask(masked);
    for (int trip = 0; trip < 3; ++trip) {
      ++idx;
      if (!is_out) work(idx);
    }
    meet(counter, group.size());
    if (is_out) {
      const Outcome outcome = outcome_of([&] { group.barrier(); });
      expect(outcome && outcome->code() == ErrorCode::kMaskedOut, "a rank that is left out is told so");
    }
    group.clear_mask();
    expect(group.masked().empty(), "nobody is masked");
  }
  work(++idx);
  group.barrier();
}

void expect_turns(int num_hosts, const std::vector<int>& masked, const MakeWork& make_work) {
  SCOPED_TRACE(::testing::PrintToString(masked));
  const SharedArray<Counter> counters(1);
  counters[0].store(0);
  const HostsJob job = make_hosts_job(num_hosts, kRanksEach);
  ReportingChildren children(host_ranks(
      job, [&](Group& group, ChildReport&) { play_in_turns(group, masked, counters[0], make_work(group)); }));
  expect_all_well(children);
}

// The rank that leads on a host carries what the others there say, also where it is left out itself.
TEST(MasksOverHosts, TakeRanksBack) {
  for (const std::vector<int>& masked : {std::vector<int>{0}, std::vector<int>{0, 1, 5}, std::vector<int>{2, 3, 4}}) {
    expect_turns(kHosts, masked, nothing_but_numbers);
  }
}

// Proposals and arrivals come over from other hosts one after the other.
TEST(MasksOverHosts, AreToldOfOtherCallsAndTheyOfThem) {
  const HostsJob job = make_hosts_job(kHosts, kRanksEach);
  ReportingChildren children(host_ranks(job, [](Group& group, ChildReport&) {
    for (int odd = 0; odd < group.size(); ++odd) {
      const bool calls_barrier = (group.rank() == odd) != (odd % 2 == 0);
      const Outcome outcome = outcome_of([&] {
        if (calls_barrier) return group.barrier();
        group.clear_mask();
      });
      expect(outcome && outcome->code() == ErrorCode::kShapeMismatch, "calls that differ");
      expect(gather_numbers(group, 5) == 5, "a number of every rank");
    }
  }));
  expect_all_well(children);
}

// Nobody else has to agree; and who waits for the rank that has gone on alone hears of that.
TEST(MasksOverHosts, LetARankThatStaysAloneGoOn) {
  HostsJob job = make_hosts_job(2, 1);
  job.timeout = milliseconds(2'000);
  const SharedArray<Counter> counters(1);
  counters[0].store(0);
  ReportingChildren children(host_ranks(job, [&counters](Group& group, ChildReport&) {
    meet(counters[0], group.size());
    if (group.rank() == 1) {
      group.set_mask({0});
      expect(gather_numbers(group, 5) == 5, "a number of one rank");
      return;
    }
    const Outcome outcome = outcome_of([&] { group.set_mask({}); });
    expect(outcome && (outcome->code() == ErrorCode::kMaskedOut || outcome->code() == ErrorCode::kPeerLost),
           "a mask that the other does not set");
  }));
  expect_all_well(children);
}

TEST(MasksOverHosts, LeaveOutAHostThatStandsStillAndTakeItBack) {
  const SharedArray<Counter> told(1);
  told[0].store(0);
  HostsJob job = make_hosts_job(kHosts, kRanksEach);
  job.timeout = milliseconds(4'000);
  const std::vector<int> stopped = {2, 3};
  ReportingChildren children(host_ranks(job, [&](Group& group, ChildReport& report) {
    const auto is_told = [&](int own) { return gather_numbers(group, own) > 1; };
    try {
      for (;;) {
        group.barrier();
        ++report.progress;
      }
    } catch (const Error& error) {
      if (group.rank() / kRanksEach == 1) {
        // It may wake as one that has waited for the others for too long, and hear of the mask after that.
        Outcome outcome = error;
        while (outcome && outcome->code() != ErrorCode::kMaskedOut) outcome = outcome_of([&] { group.barrier(); });
        expect(outcome.has_value(), "a rank that is left out passes no step");
      } else {
        go_on_without(group, error);
        expect(group.masked() == stopped, "other ranks are masked");
        report.progress = kMasked;
        while (!is_told(1 + told[0].load())) std::this_thread::sleep_for(milliseconds(1));
      }
    }
    group.clear_mask();
    nothing_but_numbers(group)(7);
    group.barrier();
  }));
  wait_for_progress(children, others_than({}), 10);
  for (const int rank : stopped) children.send(static_cast<std::size_t>(rank), SIGSTOP);
  wait_for_progress(children, others_than(stopped), kMasked);
  for (const int rank : stopped) children.send(static_cast<std::size_t>(rank), SIGCONT);
  told[0].store(1);
  expect_all_well(children);
}

/// Two parts go on without each other at once, as those do whose network is cut; then they hear of it.
void expect_larger_part_stays(const std::vector<int>& smaller, int num_changes_of_smaller) {
  const SharedArray<Counter> counters(1);
  counters[0].store(0);
  const std::vector<int> larger = others_than(smaller);
  const HostsJob job = make_hosts_job(kHosts, kRanksEach);
  ReportingChildren children(host_ranks(job, [&](Group& group, ChildReport&) {
    const bool is_in_smaller = std::find(smaller.begin(), smaller.end(), group.rank()) != smaller.end();
    meet(counters[0], group.size());
    Outcome outcome;
    if (is_in_smaller) {
      for (int change = 0; change < num_changes_of_smaller && !outcome; ++change) {
        outcome = outcome_of([&] { group.set_mask(larger); });
      }
      // They may hear of it at different calls, and then make different ones until all have.
      while (!outcome || outcome->code() == ErrorCode::kShapeMismatch) {
        outcome = outcome_of([&] { group.barrier(); });
      }
      expect(outcome->code() == ErrorCode::kMaskedOut,
             std::string("the smaller part is told that it is left out, and not: ") + outcome->what());
    } else {
      group.set_mask(smaller);
      for (int trip = 1; trip <= 200; ++trip)
        expect(gather_numbers(group, trip) == trip, "a number of the larger part");
    }
    meet(counters[0], group.size());
    if (!is_in_smaller) expect(gather_numbers(group, 7) == 7, "the larger part goes on");
    meet(counters[0], group.size());
    group.clear_mask();
    expect(gather_numbers(group, 9) == 9, "all are back");
    group.barrier();
  }));
  expect_all_well(children);
}

TEST(MasksOverHosts, LetTheLargerOfTwoPartsGoOnWhichHaveLeftEachOtherOut) {
  for (const std::vector<int>& smaller : {std::vector<int>{0, 1}, std::vector<int>{4, 5}}) {
    for (const int num_changes : {1, 3}) {
      SCOPED_TRACE(::testing::PrintToString(smaller) + ", changes: " + std::to_string(num_changes));
      expect_larger_part_stays(smaller, num_changes);
    }
  }
}

// ---- What uplinks tell each other of masks --------------------------------------------------------------------------

TEST(MaskNews, ComeThroughWhole) {
  for (const int num_ranks : {3, 8, 65, 200}) {
    const MaskNews news{.quiet = quiet_word(7, 1), .digest = 99, .ticket = 12, .num_regions = 5, .masked = {0, 2}};
    std::string bytes;
    append_mask(bytes, news, num_ranks);
    HostMessageHead head;
    ASSERT_GE(bytes.size(), sizeof(head));
    std::memcpy(&head, bytes.data(), sizeof(head));
    const std::string_view body = std::string_view(bytes).substr(sizeof(head));
    ASSERT_EQ(head.num_bytes, body.size());
    EXPECT_LE(body.size(), max_host_message_bytes(num_ranks));
    const std::optional<MaskNews> taken = take_mask(head, body, num_ranks);
    ASSERT_TRUE(taken.has_value());
    EXPECT_EQ(taken->quiet, news.quiet);
    EXPECT_EQ(taken->leader(), 1);
    EXPECT_EQ(taken->number(), 7);
    EXPECT_EQ(taken->digest, news.digest);
    EXPECT_EQ(taken->ticket, news.ticket);
    EXPECT_EQ(taken->num_regions, news.num_regions);
    EXPECT_EQ(taken->masked, news.masked);
    EXPECT_FALSE(take_mask(head, body.substr(1), num_ranks).has_value());
    EXPECT_FALSE(take_mask(head, body, num_ranks + 8).has_value());
  }
}

TEST(MaskNews, AreRefusedWhereTheyAreNoMaskOfTheGroup) {
  const auto taken = [](const MaskNews& news) {
    std::string bytes;
    append_mask(bytes, news, 4);
    HostMessageHead head;
    std::memcpy(&head, bytes.data(), sizeof(head));
    return take_mask(head, std::string_view(bytes).substr(sizeof(head)), 4).has_value();
  };
  EXPECT_TRUE(taken({.quiet = quiet_word(1, 0), .masked = {1}}));
  EXPECT_FALSE(taken({.quiet = quiet_word(1, 1), .masked = {1}}));           // led by a rank that is left out
  EXPECT_FALSE(taken({.quiet = quiet_word(1, 2), .masked = {1}}));           // not the lowest
  EXPECT_FALSE(taken({.quiet = quiet_word(1, 0), .masked = {0, 1, 2, 3}}));  // nobody stays
  EXPECT_FALSE(taken({.quiet = 0, .masked = {1}}));
  const GroupFailure failure{ErrorCode::kTimeout, Phase::kNone, 0, 0, 1};
  EXPECT_FALSE(taken({.quiet = failure.pack(), .masked = {1}}));
}

// ---- Dispatchers ----------------------------------------------------------------------------------------------------

Scenario masked_scenario_of(const Group& group) {
  Scenario scenario;
  scenario.config = {.hidden = 64, .num_experts = 17, .top_k = 5, .max_tokens = 30};
  scenario.config.layout = ExpertMajor{.alignment = 4};
  scenario.config.order = SumOrder::kDomains;
  scenario.tokens_per_rank = {5, 30, 7, 0, 19, 12};
  scenario.tokens_per_rank.resize(static_cast<std::size_t>(group.size()));
  scenario.domain_size = group.domain_size();
  scenario.masked = group.masked();
  return scenario;
}

/// Round trips by both dispatchers that go over hosts, compared with the oracle under the mask in force.
std::function<void(int)> round_trips(Group& group) {
  auto subjects = std::make_shared<std::vector<std::unique_ptr<Subject>>>();
  for (const char* const name : {"hybrid", "alltoall"}) {
    subjects->push_back(std::make_unique<Subject>(group, name, masked_scenario_of(group).config));
  }
  return [&group, subjects](int idx) {
    const Round round(masked_scenario_of(group), idx);
    for (const auto& subject : *subjects) {
      if (const Mismatch mismatch = round_trip(*subject, round)) throw std::runtime_error(*mismatch);
    }
  };
}

TEST(DispatchersUnderMasksOverHosts, GoOnWithoutARank) {
  if (const std::string lack = lack_of_fabric(); !lack.empty()) GTEST_SKIP() << lack;
  expect_to_go_on(2, {3}, round_trips);
}

TEST(DispatchersUnderMasksOverHosts, GoOnWithoutAHost) {
  if (const std::string lack = lack_of_fabric(); !lack.empty()) GTEST_SKIP() << lack;
  expect_to_go_on(kHosts, {0, 1}, round_trips);
}

TEST(DispatchersUnderMasksOverHosts, AreMadeUnderAMask) {
  if (const std::string lack = lack_of_fabric(); !lack.empty()) GTEST_SKIP() << lack;
  const SharedArray<Counter> counters(1);
  counters[0].store(0);
  ReportingChildren children(host_ranks(make_hosts_job(2, kRanksEach), [&counters](Group& group, ChildReport&) {
    meet(counters[0], group.size());
    if (group.rank() == 3) return;
    group.set_mask({3});
    const std::function<void(int)> work = round_trips(group);
    for (int idx = 1; idx < 4; ++idx) work(idx);
    group.barrier();
  }));
  expect_all_well(children);
}

TEST(DispatchersUnderMasksOverHosts, TakeRanksBackThatPassRowsOn) {
  if (const std::string lack = lack_of_fabric(); !lack.empty()) GTEST_SKIP() << lack;
  expect_turns(2, {0, 3}, round_trips);
}

}  // namespace
}  // namespace epistle::testing
