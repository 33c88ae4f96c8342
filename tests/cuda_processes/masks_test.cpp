// One process per GPU, of which one is killed or stopped in the middle of its calls: the others go on without it, every
// bit right, also while the one that was stopped wakes; and it comes back.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <iostream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <sys/wait.h>

#include <gtest/gtest.h>

#include "epistle/cuda.hpp"

#include "support/cuda_devices.hpp"
#include "support/cuda_play.hpp"
#include "support/dispatcher_names.hpp"
#include "support/go_on.hpp"
#include "support/named_scenarios.hpp"
#include "support/process_ranks.hpp"
#include "support/round_trip.hpp"
#include "support/shared_array.hpp"

namespace epistle::testing {
namespace {

using std::chrono::milliseconds;

int num_ranks_of_masks() {
  const char* const asked = std::getenv("EPISTLE_TEST_RANKS");
  return asked == nullptr ? 2 : std::stoi(asked);
}

constexpr milliseconds kRankTimeout{3'000};
constexpr milliseconds kTestPatience{40'000};
constexpr int kTrips = 4;  ///< round trips of the others before anything else happens

enum class Fails { kBeforeDispatch, kBeforeCombine };

struct MaskCase {
  std::string dispatcher;
  bool is_killed;  ///< otherwise stopped
  Fails fails;
  bool first_rank;  ///< the victim; otherwise the last one
};

/// What the ranks and the test tell each other.
struct Words {
  std::atomic<int> trips[8];      ///< of each rank since the failure
  std::atomic<int> wants_all{0};  ///< by the test: 1 = the victim is to come back, 2 = the others are to end
};

Scenario scenario_of_masks() {
  Scenario scenario;
  scenario.config = {.hidden = 2112, .num_experts = 16, .top_k = 4, .max_tokens = 24};
  scenario.config.layout = ExpertBlocks{.rows_per_expert = 200};
  scenario.config.sizing = Capacity{};
  scenario.config.wire = Fp8Blocks{};
  scenario.tokens_per_rank = {24, 17};
  return with_ranks(scenario, num_ranks_of_masks());
}

/// A round trip in which the routing goes with the rows, compared with the oracle.
void expect_trip(Subject& subject, int idx) {
  Scenario scenario = scenario_of_masks();
  scenario.masked = subject.group().masked();
  const Round round(scenario, idx);
  const int rank = subject.group().rank();
  const Checker checker(round);
  const auto trip = [&]() -> Mismatch {
    RankInputs inputs(round, rank);
    const Received received = subject.dispatch(inputs.prepare_and_dispatch());
    EPISTLE_RETURN_MISMATCH(checker.check_received(rank, subject.read(received).data(), "dispatch"));
    return check_combine(subject, checker, inputs, received, 9, /*stage=*/true);
  };
  Mismatch found = trip();
  if (!found) found = round_trip(subject, round);
  if (!found) return;
  std::cerr << "rank " << rank << ", trip " << idx << ": " << *found << std::endl;
  throw std::runtime_error("a bit differs");
}

void fail(const MaskCase& what) { ::raise(what.is_killed ? SIGKILL : SIGSTOP); }

/// The calls in which one rank fails.
void make_failing_calls_on_gpu(Subject& subject, const MaskCase& what, int victim) {
  const Round round(scenario_of_masks(), 1);
  const int rank = subject.group().rank();
  RankInputs inputs(round, rank);
  if (rank == victim && what.fails == Fails::kBeforeDispatch) fail(what);
  const Received received = subject.dispatch(inputs.prepare_and_dispatch());
  if (rank == victim && what.fails == Fails::kBeforeCombine) fail(what);
  subject.write_outputs(received, round.values(9, rank, received.num_rows()));
  RowsBuffer out = inputs.sums();
  subject.combine({.received = received, .out = out.view()});
}

/// What all ranks that are left have been told.
int told_to_all(Group& group, const std::atomic<int>& word) {
  std::vector<int> all(static_cast<std::size_t>(group.size()));
  const int own = word.load();
  group.all_gather(&own, sizeof(own), all.data());
  return *std::max_element(all.begin(), all.end());
}

int play_with_failure_on_gpu(Group& group, const MaskCase& what, int victim, Words& words) {
  Subject subject(group, what.dispatcher, scenario_of_masks().config, on_cuda());
  expect_trip(subject, 0);
  group.barrier();
  const bool is_victim = group.rank() == victim;
  try {
    make_failing_calls_on_gpu(subject, what, victim);
    std::cerr << "rank " << group.rank() << ": nothing has failed" << std::endl;
    return 3;
  } catch (const Error& error) {
    if (is_victim && error.code() != ErrorCode::kMaskedOut) throw;
    if (!is_victim) {
      if (error.context().peer_rank != victim) throw;
      if (subject.dispatcher().suspects() != std::vector<int>{victim}) return 4;
      go_on_without(group, error);
      for (int idx = 1;; ++idx) {
        expect_trip(subject, idx);
        words.trips[group.rank()] = idx;
        const int told = told_to_all(group, words.wants_all);
        if (told == 2) return 0;
        if (told == 1) break;
      }
    }
  }
  group.clear_mask();
  for (int idx = 0; idx < 3; ++idx) expect_trip(subject, 50 + idx);
  group.barrier();
  return 0;
}

class CudaMaskedProcesses : public ::testing::TestWithParam<MaskCase> {};

TEST_P(CudaMaskedProcesses, LeaveTheOthersWithEveryBitRight) {
  const MaskCase& what = GetParam();
  const int num_ranks = num_ranks_of_masks();
  if (const std::string reason = missing_gpu_nodes(num_ranks); !reason.empty()) GTEST_SKIP() << reason;
  if (const auto reason = missing_from_build(what.dispatcher); !reason.empty()) GTEST_SKIP() << reason;
  const int victim = what.first_rank ? 0 : num_ranks - 1;
  SharedArray<Words> shared(1);
  Words& words = shared[0];
  const std::vector<pid_t> pids =
      fork_ranks(num_ranks, [&](Group& group) { return play_with_failure_on_gpu(group, what, victim, words); },
                 {.timeout = kRankTimeout});
  const auto give_up = std::chrono::steady_clock::now() + kTestPatience;
  for (int rank = 0; rank < num_ranks; ++rank) {
    while (rank != victim && words.trips[rank] < kTrips && std::chrono::steady_clock::now() < give_up &&
           !has_exited(pids[static_cast<std::size_t>(rank)])) {
      std::this_thread::sleep_for(milliseconds(2));
    }
    if (rank == victim) continue;
    EXPECT_GE(words.trips[rank].load(), kTrips) << "rank " << rank;
  }
  words.wants_all = what.is_killed ? 2 : 1;
  // A rank that was stopped wakes beside the calls of the others.
  if (!what.is_killed) ::kill(pids[static_cast<std::size_t>(victim)], SIGCONT);
  for (int rank = 0; rank < num_ranks; ++rank) {
    const int exit = wait_for(pids[static_cast<std::size_t>(rank)]);
    EXPECT_EQ(exit, rank == victim && what.is_killed ? 128 + SIGKILL : 0) << "exit of rank " << rank;
  }
}

INSTANTIATE_TEST_SUITE_P(All, CudaMaskedProcesses,
                         ::testing::Values(MaskCase{"direct", true, Fails::kBeforeCombine, true},
                                           MaskCase{"direct", false, Fails::kBeforeDispatch, false},
                                           MaskCase{"low_latency", true, Fails::kBeforeDispatch, false},
                                           MaskCase{"low_latency", false, Fails::kBeforeCombine, true},
                                           MaskCase{"auto", true, Fails::kBeforeDispatch, false}),
                         [](const auto& param_info) {
                           const MaskCase& what = param_info.param;
                           return what.dispatcher + (what.is_killed ? "_Killed" : "_Stopped") +
                                  (what.fails == Fails::kBeforeDispatch ? "BeforeDispatch" : "BeforeCombine") +
                                  (what.first_rank ? "_First" : "_Last");
                         });

}  // namespace
}  // namespace epistle::testing
