// Every system call of the meeting, of the descriptor channel and of shared memory fails once, in one rank, at every
// stage: all ranks succeed, or all throw the same error that names it, in time and without leftovers.
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <ostream>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "faults/staged_ranks.hpp"
#include "support/sharded.hpp"

namespace epistle::testing {
namespace {

constexpr int kCallRanks = 3;
// A stage makes some calls hundreds of times, while it waits: of those the first ones, and some of the others.
constexpr int kFirstCalls = 10;
constexpr int kLaterCalls = 3;
// Cases of a rank that stops, or cannot speak, last for as long as the timeout. All others end long before theirs: they
// have one that no busy machine exceeds, and who waits for it in vain shows by its error.
constexpr std::chrono::milliseconds kTimeoutOfStops{1200};
constexpr std::chrono::milliseconds kTimeoutOfTheDumb{2000};
// A busy machine may keep a healthy rank for longer than that. What is wrong with the library is so with this as well.
constexpr std::chrono::milliseconds kTimeoutOfSecondTries{30'000};

struct Errors {
  SystemCall call;
  std::vector<int> failures;  ///< an error of the rank, which all must hear of, unless it can do without
  std::vector<int> retries;   ///< the call has only to be made again
  friend std::ostream& operator<<(std::ostream& stream, const Errors& errors) {
    return stream << kSystemCallNames[static_cast<std::size_t>(errors.call)];
  }
};

const std::vector<Errors>& errors() {
  static const std::vector<Errors> all = {
      {SystemCall::kSocket, {EMFILE, ENOMEM}, {}},
      {SystemCall::kBind, {ENOMEM}, {}},
      {SystemCall::kListen, {ENOBUFS}, {}},
      {SystemCall::kAccept, {EMFILE, ENOMEM}, {EINTR, EAGAIN, ECONNABORTED}},
      {SystemCall::kConnect, {ENOMEM, EACCES}, {EINTR, EAGAIN, ECONNREFUSED}},
      {SystemCall::kSend, {EIO, ENOBUFS, ETOOMANYREFS}, {EINTR, EAGAIN}},
      {SystemCall::kReceive, {EIO, ENOMEM}, {EINTR, EAGAIN}},
      {SystemCall::kPoll, {ENOMEM}, {EINTR}},
      {SystemCall::kShutdown, {ENOBUFS}, {}},
      {SystemCall::kGetsockopt, {ENOBUFS}, {}},
      {SystemCall::kSetsockopt, {ENOMEM}, {}},
      {SystemCall::kDuplicate, {EMFILE}, {}},
      {SystemCall::kLock, {ENOLCK, EINTR}, {}},
      {SystemCall::kSeal, {EBUSY}, {}},
      {SystemCall::kFcntl, {EINVAL}, {}},
      {SystemCall::kMemfdCreate, {EMFILE, ENOMEM}, {}},
      {SystemCall::kFtruncate, {ENOMEM, EFBIG}, {EINTR}},
      {SystemCall::kFallocate, {ENOSPC, EFBIG}, {EINTR}},
      {SystemCall::kMmap, {ENOMEM}, {}},
      {SystemCall::kFstat, {EIO}, {}},
      {SystemCall::kEpollCreate, {EMFILE}, {}},
      {SystemCall::kEpollCtl, {ENOMEM}, {}},
      {SystemCall::kEventfd, {EMFILE}, {}},
      {SystemCall::kPidfd, {EMFILE, ENOSYS}, {}},
      {SystemCall::kOpen, {EMFILE}, {EINTR}},
      {SystemCall::kRead, {EIO}, {EINTR}},
      {SystemCall::kWrite, {EIO}, {EINTR}},
  };
  return all;
}

std::string name_of(SystemCall call) { return kSystemCallNames[static_cast<std::size_t>(call)]; }

std::string to_text(const StagedRanks::Options& options, const std::string& fault) {
  return fmt::format("rank {}: call {} of {} {}", options.victim, options.fault.nth, name_of(options.fault.call),
                     fault);
}

/// Which calls of one kind a rank made in a stage that nothing disturbed: the positions to try.
struct Position {
  Stage stage;
  int nth;
  bool first_of_stage;
};

std::vector<Position> positions_of(const StagedRecord& record, SystemCall call) {
  std::vector<Position> result;
  const auto idx = static_cast<std::size_t>(call);
  for (std::size_t stage = 0; stage + 1 < kNumStages; ++stage) {
    const int begin = record.counts_before[stage][idx];
    const int num_calls = record.counts_before[stage + 1][idx] - begin;
    const int num_later = num_calls - kFirstCalls;
    const int step = std::max(1, num_later / kLaterCalls);
    for (int nth = 1; nth <= num_calls; nth += nth < kFirstCalls ? 1 : step) {
      result.push_back({static_cast<Stage>(stage), begin + nth, nth == 1});
    }
  }
  return result;
}

struct Case {
  StagedRanks::Options options;
  Stage stage;
  bool must_succeed = false;
  bool survivors_only = false;
};

/// Whether the others may have to wait for the rank until they give it up.
bool may_be_waited_for(const Case& tried) {
  const SystemCallFault& fault = tried.options.fault;
  // What does not go out now may do so later.
  const bool is_mute = fault.fault == CallFault::kErrorForever && fault.call == SystemCall::kSend;
  return tried.stage == Stage::kJoin || is_mute || fault.fault == CallFault::kStopBefore;
}

std::string try_case(const Case& tried) {
  StagedRanks ranks(tried.options);
  const std::string problem = tried.survivors_only ? judge_survivors(ranks, tried.options)
                                                   : judge_fault(ranks, tried.options, tried.must_succeed);
  if (problem.empty()) return {};
  const SystemCallFault& fault = tried.options.fault;
  constexpr const char* kFaults[] = {"fails once with ", "fails for ever with ", "loses its descriptors",
                                     "is its death",     "is its last",          "stops it"};
  return fmt::format("{} ({}): {}{}",
                     to_text(tried.options, fmt::format("{}{}", kFaults[static_cast<std::size_t>(fault.fault)],
                                                        fault.error != 0 ? ::strerrorname_np(fault.error) : "")),
                     to_text(tried.stage), problem, ranks.describe());
}

std::string run_case(Case tried) {
  if (!may_be_waited_for(tried)) return try_case(tried);
  const bool stops = tried.options.fault.fault == CallFault::kStopBefore;
  tried.options.timeout = stops ? kTimeoutOfStops : kTimeoutOfTheDumb;
  if (try_case(tried).empty()) return {};
  tried.options.timeout = kTimeoutOfSecondTries;
  return try_case(tried);
}

void expect_no_problem(const std::vector<Case>& cases) {
  const auto problems = run_sharded(cases.size(), [&](std::size_t idx) { return run_case(cases[idx]); });
  ::testing::Test::RecordProperty("cases", static_cast<int>(cases.size()));
  std::string text;
  for (const std::string& problem : problems) text += "\n  " + problem;
  EXPECT_TRUE(problems.empty()) << problems.size() << " problems seen in up to " << cases.size() << " cases:" << text;
}

class SystemCalls : public ::testing::TestWithParam<Errors> {
 protected:
  void SetUp() override {
    const StagedRanks::Options nothing_fails{.num_ranks = kCallRanks};
    StagedRanks ranks(nothing_fails);
    const std::string problem = ranks.wait_for_all();
    ASSERT_TRUE(problem.empty()) << problem << ranks.describe();
    for (int rank = 0; rank < kCallRanks; ++rank) {
      ASSERT_FALSE(ranks.children().report(static_cast<std::size_t>(rank)).threw) << ranks.describe();
      ASSERT_EQ(ranks.record(rank).num_descriptors_left, 0) << "rank " << rank;
      positions_.push_back(positions_of(ranks.record(rank), GetParam().call));
      num_positions_ += positions_.back().size();
    }
    // Not every call is made by every version of the library; these are the ones that no group can do without.
    const SystemCall call = GetParam().call;
    const bool is_vital = call == SystemCall::kSocket || call == SystemCall::kSend || call == SystemCall::kReceive ||
                          call == SystemCall::kMemfdCreate || call == SystemCall::kMmap;
    ASSERT_TRUE(num_positions_ > 0 || !is_vital) << "the calls of this program do not come through its own functions";
  }

  /// Every position in every rank.
  template <typename Add>
  std::vector<Case> make_cases(const Add& add) const {
    std::vector<Case> cases;
    for (int rank = 0; rank < kCallRanks; ++rank) {
      for (const Position& position : positions_[static_cast<std::size_t>(rank)]) {
        Case tried{.options = {.num_ranks = kCallRanks, .victim = rank}, .stage = position.stage};
        tried.options.fault = {.call = GetParam().call, .nth = position.nth};
        add(tried, position, cases);
      }
    }
    return cases;
  }

 private:
  std::vector<std::vector<Position>> positions_;
  std::size_t num_positions_ = 0;
};

TEST_P(SystemCalls, FailureIsToldToAll) {
  expect_no_problem(make_cases([](Case tried, const Position& position, std::vector<Case>& cases) {
    for (const int error : GetParam().failures) {
      tried.options.fault.error = error;
      tried.options.fault.fault = CallFault::kError;
      cases.push_back(tried);
      if (!position.first_of_stage) continue;
      tried.options.fault.fault = CallFault::kErrorForever;
      cases.push_back(tried);
    }
    if (GetParam().call != SystemCall::kReceive) return;
    tried.options.fault.error = 0;
    tried.options.fault.fault = CallFault::kLoseDescriptors;
    cases.push_back(tried);
  }));
}

TEST_P(SystemCalls, InterruptionIsNotNoticed) {
  expect_no_problem(make_cases([](Case tried, const Position&, std::vector<Case>& cases) {
    tried.must_succeed = true;
    for (const int error : GetParam().retries) {
      tried.options.fault.error = error;
      cases.push_back(tried);
    }
  }));
}

/// A rank that ends or stops there is named by all others alike.
TEST_P(SystemCalls, DeathIsSeenByAll) {
  expect_no_problem(make_cases([](Case tried, const Position& position, std::vector<Case>& cases) {
    tried.survivors_only = true;
    tried.options.fault.fault = CallFault::kKillBefore;
    cases.push_back(tried);
    tried.options.fault.fault = CallFault::kKillAfter;
    cases.push_back(tried);
    if (!position.first_of_stage) return;
    tried.options.fault.fault = CallFault::kStopBefore;
    cases.push_back(tried);
  }));
}

INSTANTIATE_TEST_SUITE_P(All, SystemCalls, ::testing::ValuesIn(errors()),
                         [](const auto& param_info) { return name_of(param_info.param.call); });

}  // namespace
}  // namespace epistle::testing
