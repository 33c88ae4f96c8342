// A rank that is killed or stopped at any moment: all others throw the same error, which names it, in time.
#include <csignal>
#include <cstdlib>
#include <ctime>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"
#include "epistle/group.hpp"

#include "faults/staged_ranks.hpp"
#include "support/process_ranks.hpp"
#include "support/scenario.hpp"
#include "support/sharded.hpp"

namespace epistle::testing {
namespace {

constexpr int kKillRanks = 4;
constexpr std::size_t kDefaultTrials = 24;
// A stopped rank, and one that has died before it came, are given up after this long.
constexpr std::chrono::milliseconds kTimeoutOfLostRanks{3000};

std::uint64_t number_from_environment(const char* name, std::uint64_t otherwise) {
  const char* const text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

struct Trial {
  StagedRanks::Options options;
  Stage stage;  ///< the victim's, in which it is hit
  std::chrono::microseconds delay{0};
  int signal = SIGKILL;
};

/// Stage, victim and kind of failure in turn; the moment in the stage at random.
Trial make_trial(std::uint64_t seed, std::size_t idx) {
  constexpr std::uint64_t kLongestDelayUs = 2500;  // about as long as the longest stage lasts
  constexpr std::size_t kNumHitStages = kNumStages - 1;
  Trial trial;
  trial.options.num_ranks = kKillRanks;
  trial.stage = static_cast<Stage>(idx % kNumHitStages);
  const std::uint64_t draw = mix(seed, idx);
  trial.options.victim = static_cast<int>(draw % kKillRanks);
  trial.signal = (draw >> 8) % 3 == 0 ? SIGSTOP : SIGKILL;
  trial.delay = std::chrono::microseconds(mix(draw, 1) % kLongestDelayUs);
  if (trial.signal == SIGSTOP || trial.stage == Stage::kJoin) trial.options.timeout = kTimeoutOfLostRanks;
  return trial;
}

/// A timer of the victim's own sends it the signal: no process has to be scheduled at the right moment.
void arm_timer(const Trial& trial) {
  sigevent event{};
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = trial.signal;
  timer_t timer{};
  itimerspec when{};
  when.it_value.tv_nsec = std::chrono::nanoseconds(trial.delay).count() + 1;
  if (::timer_create(CLOCK_MONOTONIC, &event, &timer) != 0 || ::timer_settime(timer, 0, &when, nullptr) != 0) {
    throw std::runtime_error("cannot start a timer");
  }
}

std::string try_trial(Trial trial, std::size_t idx) {
  const auto on_stage = [trial](int rank, Stage stage) {
    if (rank == trial.options.victim && stage == trial.stage) arm_timer(trial);
  };
  trial.options.on_stage = on_stage;
  StagedRanks ranks(trial.options);
  const std::string problem = judge_survivors(ranks, trial.options);
  if (problem.empty()) return {};
  return fmt::format("trial {}: rank {} gets {} {} us into {}: {}{}", idx, trial.options.victim,
                     trial.signal == SIGSTOP ? "SIGSTOP" : "SIGKILL", trial.delay.count(), to_text(trial.stage),
                     problem, ranks.describe());
}

std::string run_trial(Trial trial, std::size_t idx) {
  const std::chrono::milliseconds longest = StagedRanks::Options{}.timeout;
  const std::string problem = try_trial(trial, idx);
  if (problem.empty() || trial.options.timeout == longest) return problem;
  // A busy machine may have kept a healthy rank for longer than that, which is then named by all.
  trial.options.timeout = longest;
  return try_trial(trial, idx);
}

// EPISTLE_TEST_TRIALS=400 EPISTLE_TEST_SEED=7 for more of them.
TEST(Kills, SurvivorsAgree) {
  const auto num_trials = static_cast<std::size_t>(number_from_environment("EPISTLE_TEST_TRIALS", kDefaultTrials));
  const std::uint64_t seed = number_from_environment("EPISTLE_TEST_SEED", 1);
  const auto problems = run_sharded(num_trials, [&](std::size_t idx) { return run_trial(make_trial(seed, idx), idx); });
  std::string text;
  for (const std::string& problem : problems) text += "\n  " + problem;
  EXPECT_TRUE(problems.empty()) << problems.size() << " problems in up to " << num_trials << " trials:" << text;
}

// A rank that had forked leaves its descriptors and mappings behind, in a process that is no rank. Its end must be seen
// as quickly as any other.
TEST(Kills, DeathIsSeenThoughAChildOfTheRankLivesOn) {
  constexpr std::chrono::milliseconds kTimeout{10'000};
  constexpr std::int64_t kQuicklyMs = 5'000;
  constexpr int kVictim = 1;
  for (const bool in_create : {false, true}) {
    SCOPED_TRACE(in_create ? "others create a dispatcher" : "others wait in a barrier");
    SharedArray<pid_t> grandchild(1);
    const std::string job = unique_job();
    std::vector<ReportingChildren::Body> bodies;
    for (int rank = 0; rank < 3; ++rank) {
      bodies.emplace_back([=, &grandchild](ChildReport&) {
        Group group = join_process_group({.rank = rank, .num_ranks = 3, .job = job}, {.timeout = kTimeout});
        group.barrier();
        if (rank == kVictim) {
          const pid_t pid = ::fork();
          if (pid == 0) {
            ::pause();
            ::_exit(0);
          }
          grandchild[0] = pid;
          ::raise(SIGKILL);
        }
        if (!in_create) {
          group.barrier();
          return;
        }
        (void)Dispatcher(group, "direct", {.hidden = 64, .num_experts = 8, .top_k = 2, .max_tokens = 16});
      });
    }
    ReportingChildren children(bodies);
    for (const std::size_t rank : {0U, 2U}) {
      ASSERT_EQ(children.wait(rank), 0);
      const ChildReport& report = children.report(rank);
      EXPECT_TRUE(report.threw);
      EXPECT_EQ(report.code, ErrorCode::kPeerLost) << report.message;
      EXPECT_EQ(report.peer_rank, kVictim) << report.message;
      EXPECT_LT(report.took_ms, kQuicklyMs);
    }
    ASSERT_GT(grandchild[0], 0);
    ::kill(grandchild[0], SIGKILL);
  }
}

// A descriptor of the group's memory that is opened and closed again, as tools do that look at /proc, ends nothing.
TEST(Kills, LookingAtOwnDescriptorsIsNoDeath) {
  constexpr std::chrono::milliseconds kTimeout{5'000};
  const std::string job = unique_job();
  std::vector<ReportingChildren::Body> bodies;
  for (int rank = 0; rank < 3; ++rank) {
    bodies.emplace_back([=](ChildReport&) {
      Group group = join_process_group({.rank = rank, .num_ranks = 3, .job = job}, {.timeout = kTimeout});
      for (int fd = 3; fd < 64; ++fd) {
        const int looked_at = ::open(fmt::format("/proc/self/fd/{}", fd).c_str(), O_RDONLY | O_CLOEXEC);
        if (looked_at >= 0) ::close(looked_at);
      }
      group.barrier();
      // The others must look for lost ranks while they wait for this one.
      if (rank == 1) std::this_thread::sleep_for(std::chrono::milliseconds(300));
      group.barrier();
    });
  }
  ReportingChildren children(bodies);
  for (std::size_t rank = 0; rank < 3; ++rank) {
    ASSERT_EQ(children.wait(rank), 0);
    EXPECT_FALSE(children.report(rank).threw) << children.report(rank).message;
  }
}

}  // namespace
}  // namespace epistle::testing
