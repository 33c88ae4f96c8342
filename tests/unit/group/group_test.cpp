// Groups of threads: barriers, gathers, and what becomes of ranks that leave, throw or stall.
#include "epistle/group.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <sys/socket.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "epistle/error.hpp"

#include "group/group_impl.hpp"
#include "support/process_ranks.hpp"
#include "support/round_trip.hpp"

namespace epistle::testing {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// Long enough that a test which passes cannot have waited for it.
constexpr milliseconds kNever{30'000};
constexpr milliseconds kQuickly{5'000};

TEST(Group, KnowsItself) {
  const std::vector<Group> groups = make_thread_groups(3, {.timeout = milliseconds(1234)});
  ASSERT_EQ(groups.size(), 3U);
  for (int rank = 0; rank < 3; ++rank) {
    const Group& group = groups[static_cast<std::size_t>(rank)];
    EXPECT_EQ(group.rank(), rank);
    EXPECT_EQ(group.size(), 3);
    EXPECT_EQ(group.kind(), GroupKind::kThreads);
    EXPECT_EQ(group.timeout(), milliseconds(1234));
  }
}

TEST(Group, RefusesImpossibleSizes) {
  for (const int num_ranks : {0, -1, 1025}) {
    const Outcome outcome = outcome_of([&] { (void)make_thread_groups(num_ranks); });
    ASSERT_TRUE(outcome.has_value());
    EXPECT_EQ(outcome->code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(std::string(outcome->what()).find(std::to_string(num_ranks)), std::string::npos) << outcome->what();
  }
}

TEST(Group, BarrierHoldsEveryRankBack) {
  constexpr int kRounds = 300;
  for (const int num_ranks : {1, 2, 5, 32}) {
    std::atomic<int> num_arrived{0};
    std::atomic<int> num_early{0};
    run_thread_ranks(num_ranks, [&](Group& group) {
      for (int round = 1; round <= kRounds; ++round) {
        num_arrived.fetch_add(1);
        group.barrier();
        if (num_arrived.load() < round * num_ranks) num_early.fetch_add(1);
        group.barrier();
      }
    });
    EXPECT_EQ(num_early.load(), 0) << num_ranks << " ranks";
    EXPECT_EQ(num_arrived.load(), num_ranks * kRounds);
  }
}

TEST(Group, AllGatherOfAnySize) {
  for (const int num_ranks : {1, 3, 32}) {
    run_thread_ranks(num_ranks, [&](Group& group) {
      for (const std::size_t num_bytes : {0U, 1U, 4095U, 4096U, 4097U, 10'000U}) {
        const auto value = [&](int rank, std::size_t idx) {
          return static_cast<unsigned char>(static_cast<std::size_t>(rank) * 31 + idx * 7 + num_bytes);
        };
        std::vector<unsigned char> input(num_bytes);
        for (std::size_t idx = 0; idx < num_bytes; ++idx) input[idx] = value(group.rank(), idx);
        std::vector<unsigned char> output(num_bytes * static_cast<std::size_t>(num_ranks) + 1, 0xee);
        group.all_gather(input.data(), num_bytes, output.data());
        std::size_t num_wrong = output.back() == 0xee ? 0 : 1;
        for (int rank = 0; rank < num_ranks; ++rank) {
          for (std::size_t idx = 0; idx < num_bytes; ++idx) {
            if (output[static_cast<std::size_t>(rank) * num_bytes + idx] != value(rank, idx)) ++num_wrong;
          }
        }
        EXPECT_EQ(num_wrong, 0U) << num_bytes << " bytes, " << num_ranks << " ranks, rank " << group.rank();
      }
    });
  }
}

// ---- Ranks that go --------------------------------------------------------------------------------------------------

/// What every rank of a group of four got from `body`, and how long it took.
struct Ending {
  std::vector<Outcome> outcomes = std::vector<Outcome>(4);
  Clock::duration took{};
};

/// Runs `body` as four ranks; an exception that is no epistle::Error ends the rank, as it would a program's.
Ending run_four(const std::function<void(Group&)>& body, milliseconds timeout = kNever) {
  Ending ending;
  const auto start = Clock::now();
  try {
    run_thread_ranks(4,
                     [&](Group& group) {
                       Outcome& outcome = ending.outcomes[static_cast<std::size_t>(group.rank())];
                       try {
                         body(group);
                       } catch (const Error& error) {
                         outcome = error;
                       }
                     },
                     {.timeout = timeout});
  } catch (const std::runtime_error&) {
  }
  ending.took = Clock::now() - start;
  return ending;
}

void expect_lost(const Ending& ending, int lost_rank) {
  EXPECT_LT(ending.took, kQuickly);
  for (int rank = 0; rank < 4; ++rank) {
    if (rank == lost_rank) continue;
    const Outcome& outcome = ending.outcomes[static_cast<std::size_t>(rank)];
    ASSERT_TRUE(outcome.has_value()) << "rank " << rank;
    EXPECT_EQ(outcome->code(), ErrorCode::kPeerLost) << outcome->what();
    EXPECT_EQ(outcome->context().peer_rank, lost_rank);
    EXPECT_EQ(outcome->context().rank, rank);
    EXPECT_EQ(outcome->context().phase, Phase::kBarrier);
    EXPECT_NE(std::string(outcome->what()).find("rank " + std::to_string(lost_rank)), std::string::npos);
  }
}

TEST(Group, RankThatReturnsEarlyIsNamed) {
  expect_lost(run_four([](Group& group) {
                group.barrier();
                if (group.rank() != 2) group.barrier();
              }),
              2);
}

TEST(Group, RankThatThrowsIsNamed) {
  expect_lost(run_four([](Group& group) {
                group.barrier();
                if (group.rank() == 0) throw std::runtime_error("out of luck");
                std::array<int, 4> gathered{};
                group.all_gather(&gathered[0], sizeof(int), gathered.data());
              }),
              0);
}

TEST(Group, RankThatLeavesAfterTheLastCallIsNotMissed) {
  // The others may still be asleep in the barrier when the last one to arrive is gone.
  for (int repeat = 0; repeat < 100; ++repeat) {
    const Ending ending = run_four([](Group& group) { group.barrier(); });
    for (const Outcome& outcome : ending.outcomes) EXPECT_FALSE(outcome.has_value()) << outcome->what();
  }
}

TEST(Group, BrokenGroupThrowsTheSameAtOnce) {
  (void)run_four([](Group& group) {
    if (group.rank() == 1) return;
    for (int repeat = 0; repeat < 3; ++repeat) {
      const auto start = Clock::now();
      const Outcome outcome = outcome_of([&] { group.barrier(); });
      ASSERT_TRUE(outcome.has_value());
      EXPECT_EQ(outcome->code(), ErrorCode::kPeerLost);
      EXPECT_EQ(outcome->context().peer_rank, 1);
      EXPECT_LT(Clock::now() - start, kQuickly);
    }
  });
}

// ---- Ranks that stall -----------------------------------------------------------------------------------------------

TEST(Group, StalledRankIsNamedAndToldSo) {
  constexpr milliseconds kTimeout{200};
  std::mutex mutex;
  std::condition_variable changed;
  int num_given_up = 0;
  const Ending ending = run_four(
      [&](Group& group) {
        group.barrier();
        if (group.rank() == 1) {
          std::unique_lock lock(mutex);
          changed.wait_for(lock, kNever, [&] { return num_given_up == 3; });
          lock.unlock();
          group.barrier();  // too late
          return;
        }
        const auto start = Clock::now();
        const Outcome outcome = outcome_of([&] { group.barrier(); });
        const auto took = Clock::now() - start;
        EXPECT_GE(took, kTimeout / 2);  // the first rank to see it tells the others
        EXPECT_LT(took, kTimeout + kQuickly);
        {
          const std::lock_guard lock(mutex);
          ++num_given_up;
        }
        changed.notify_all();
        if (outcome) throw Error(*outcome);
      },
      kTimeout);
  for (int rank = 0; rank < 4; ++rank) {
    SCOPED_TRACE("rank " + std::to_string(rank));
    const Outcome& outcome = ending.outcomes[static_cast<std::size_t>(rank)];
    ASSERT_TRUE(outcome.has_value());
    EXPECT_EQ(outcome->code(), ErrorCode::kTimeout);
    EXPECT_EQ(outcome->context().phase, Phase::kBarrier);
    EXPECT_EQ(outcome->context().peer_rank, 1);
    const std::string message = outcome->what();
    EXPECT_NE(message.find("200 ms"), std::string::npos) << message;
    EXPECT_NE(message.find("EPISTLE_TIMEOUT_MS"), std::string::npos) << message;
    EXPECT_NE(message.find(rank == 1 ? "given up by rank" : "rank 1 did not arrive"), std::string::npos) << message;
  }
}

TEST(Group, RankThatStallsInADispatcherCall) {
  Scenario scenario;
  scenario.config = {.hidden = 32, .num_experts = 8, .top_k = 2, .max_tokens = 8};
  scenario.tokens_per_rank = {4, 4, 4, 4};
  std::atomic<int> num_given_up{0};
  const Ending ending = run_four(
      [&](Group& group) {
        Subject subject(group, "direct", scenario.config);
        const Round round(scenario, 0);
        const Handle handle = subject.prepare(RankInputs(round, group.rank()).prepare());
        if (group.rank() == 2) {
          const auto deadline = Clock::now() + kNever;
          while (num_given_up.load() < 3 && Clock::now() < deadline) std::this_thread::sleep_for(milliseconds(1));
        }
        const Outcome outcome = outcome_of([&] { (void)round_trip(subject, round); });
        num_given_up.fetch_add(1);
        if (outcome) throw Error(*outcome);
      },
      milliseconds(200));
  for (const Outcome& outcome : ending.outcomes) {
    ASSERT_TRUE(outcome.has_value());
    EXPECT_EQ(outcome->code(), ErrorCode::kTimeout);
    EXPECT_EQ(outcome->context().peer_rank, 2);
    EXPECT_EQ(outcome->context().phase, Phase::kLayout);
  }
}

// ---- Ranks that watch each other without a barrier ------------------------------------------------------------------

TEST(Group, FailNamesTheSameRankEverywhere) {
  const MissingRows seven_rows = [](int /*peer_rank*/) { return std::int64_t{7}; };
  const Ending ending = run_four([&](Group& group) {
    group.barrier();
    // Ranks 0 and 3 blame different ranks, one after the other: only the first report counts.
    if (group.rank() == 0) group.impl().fail(ErrorCode::kTimeout, Phase::kDispatch, 2, &seven_rows);
    if (group.rank() == 3) {
      while (!outcome_of([&] { group.impl().check_usable(); })) std::this_thread::yield();
      group.impl().fail(ErrorCode::kPeerLost, Phase::kCombine, 1);
    }
    group.barrier();
  });
  EXPECT_LT(ending.took, kQuickly);
  for (int rank = 0; rank < 4; ++rank) {
    SCOPED_TRACE("rank " + std::to_string(rank));
    const Outcome& outcome = ending.outcomes[static_cast<std::size_t>(rank)];
    ASSERT_TRUE(outcome.has_value());
    EXPECT_EQ(outcome->code(), ErrorCode::kTimeout) << outcome->what();
    EXPECT_EQ(outcome->context().rank, rank);
    EXPECT_EQ(outcome->context().peer_rank, 2);
    EXPECT_EQ(outcome->context().phase, Phase::kDispatch);
    EXPECT_EQ(outcome->context().missing_rows, rank == 0 ? 7 : -1);
  }
}

TEST(Group, FailureOfAnotherKindIsDescribed) {
  const Ending ending = run_four([](Group& group) {
    group.barrier();
    if (group.rank() == 1) group.impl().fail(ErrorCode::kSystem, Phase::kCombine, 2);
    group.barrier();
  });
  for (const int rank : {0, 1, 3}) {
    const Outcome& outcome = ending.outcomes[static_cast<std::size_t>(rank)];
    ASSERT_TRUE(outcome.has_value());
    EXPECT_EQ(outcome->code(), ErrorCode::kSystem);
    EXPECT_NE(std::string(outcome->what()).find("rank 2 failed in combine"), std::string::npos) << outcome->what();
  }
}

TEST(Group, FindsTheRankThatHasLeft) {
  std::vector<Group> groups = make_thread_groups(3);
  for (const Group& group : groups) EXPECT_EQ(group.impl().find_lost_rank(), -1);
  groups[1].impl().depart();
  EXPECT_EQ(groups[0].impl().find_lost_rank(), 1);
  EXPECT_EQ(groups[1].impl().find_lost_rank(), -1);  // itself does not count
  EXPECT_EQ(groups[2].impl().find_lost_rank(), 1);
  EXPECT_FALSE(outcome_of([&] { groups[0].impl().check_usable(); }));  // to look breaks nothing
}

TEST(Group, FindsTheProcessThatHasEnded) {
  const std::vector<int> exits = run_process_ranks(3, [](Group& group) {
    group.barrier();
    if (group.rank() == 2) ::_exit(0);  // no destructor runs: only the kernel knows
    const auto deadline = Clock::now() + kQuickly;
    while (group.impl().find_lost_rank() < 0 && Clock::now() < deadline) std::this_thread::yield();
    const int lost_rank = group.impl().find_lost_rank();
    // Both look before either goes.
    (void)outcome_of([&] { group.barrier(); });
    return lost_rank == 2 ? 0 : 1;
  });
  EXPECT_EQ(exits, std::vector<int>({0, 0, 0}));
}

// ---- Descriptors ----------------------------------------------------------------------------------------------------

TEST(Group, ExchangedDescriptorsReachEveryProcess) {
  const std::vector<int> exits = run_process_ranks(3, [](Group& group) {
    for (int round = 0; round < 2; ++round) {
      const std::int64_t num_bytes = 4096 * (group.rank() + 1) + round;
      const std::vector<UniqueFd> files = group.impl().exchange_fds(create_shared_file(num_bytes));
      for (int peer = 0; peer < group.size(); ++peer) {
        const auto end = ::lseek(files[static_cast<std::size_t>(peer)].get(), 0, SEEK_END);
        if (end != 4096 * (peer + 1) + round) return 1 + peer;
      }
    }
    group.barrier();
    return 0;
  });
  EXPECT_EQ(exits, std::vector<int>({0, 0, 0}));
}

TEST(Group, RankLostInAnExchangeBreaksTheGroup) {
  const std::vector<int> exits = run_process_ranks(3, [](Group& group) {
    // No barrier before: a rank that is slow to leave it would meet the failure that another one has seen since, there.
    if (group.rank() == 1) ::_exit(0);
    const auto names_rank_1 = [](const Outcome& outcome) {
      return outcome && outcome->code() == ErrorCode::kPeerLost && outcome->context().peer_rank == 1;
    };
    const UniqueFd file = create_shared_file(4096);
    if (!names_rank_1(outcome_of([&] { (void)group.impl().exchange_fds(file); }))) return 1;
    return names_rank_1(outcome_of([&] { group.barrier(); })) ? 0 : 2;
  });
  EXPECT_EQ(exits, std::vector<int>({0, 0, 0}));
}

// Of a kind that another process cannot open by its number: sockets, as memory of a GPU is.
TEST(Group, ExchangesAnyDescriptorWithoutRanksThatAreMaskedOut) {
  for (const std::vector<int>& masked : {std::vector<int>{0}, std::vector<int>{1, 2}, std::vector<int>{0, 1, 2}}) {
    const std::vector<int> exits = run_process_ranks(4, [&masked](Group& group) {
      if (std::find(masked.begin(), masked.end(), group.rank()) != masked.end()) ::_exit(0);
      group.set_mask(masked);
      for (int round = 0; round < 2; ++round) {
        std::array<int, 2> ends{};
        if (::socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()) != 0) return 10;
        const UniqueFd reading(ends[0]);
        const UniqueFd given(ends[1]);
        const std::vector<UniqueFd> files = group.impl().exchange_fds(given);
        const char own = static_cast<char>('a' + group.rank());
        for (int peer = 0; peer < group.size(); ++peer) {
          const UniqueFd& file = files[static_cast<std::size_t>(peer)];
          if (file.valid() == group.is_masked(peer)) return 20 + peer;
          if (file.valid() && ::write(file.get(), &own, 1) != 1) return 30 + peer;
        }
        group.barrier();
        std::string heard(static_cast<std::size_t>(group.size()) - masked.size(), ' ');
        if (::read(reading.get(), heard.data(), heard.size()) != static_cast<ssize_t>(heard.size())) return 40;
        std::sort(heard.begin(), heard.end());
        std::string expected;
        for (int peer = 0; peer < group.size(); ++peer) {
          if (!group.is_masked(peer)) expected += static_cast<char>('a' + peer);
        }
        if (heard != expected) return 50;
        group.barrier();
      }
      return 0;
    });
    for (int rank = 0; rank < 4; ++rank) {
      // Who is left out may be told so while it still joins.
      if (std::find(masked.begin(), masked.end(), rank) != masked.end()) continue;
      EXPECT_EQ(exits[static_cast<std::size_t>(rank)], 0) << ::testing::PrintToString(masked) << ", rank " << rank;
    }
  }
}

TEST(Group, ThreadsExchangeNoDescriptors) {
  const std::vector<Group> groups = make_thread_groups(1);
  const Outcome outcome = outcome_of([&] { (void)groups[0].impl().exchange_fds(UniqueFd()); });
  ASSERT_TRUE(outcome.has_value());
  EXPECT_EQ(outcome->code(), ErrorCode::kUnsupported);
  EXPECT_FALSE(outcome_of([&] { groups[0].impl().check_usable(); }));
}

// ---- run_thread_ranks -----------------------------------------------------------------------------------------------

TEST(RunThreadRanks, RethrowsTheErrorOfTheRankThatFailedOfItself) {
  for (const int culprit : {0, 2}) {
    try {
      run_thread_ranks(4,
                       [&](Group& group) {
                         group.barrier();
                         if (group.rank() == culprit) throw std::invalid_argument("culprit");
                         group.barrier();
                       },
                       {.timeout = kNever});
      FAIL() << "nothing was thrown";
    } catch (const std::invalid_argument& error) {
      EXPECT_STREQ(error.what(), "culprit");
    }
  }
}

TEST(RunThreadRanks, RethrowsASecondaryErrorWhereThereIsNoOther) {
  const Outcome outcome = outcome_of([] {
    run_thread_ranks(3, [](Group& group) {
      if (group.rank() != 1) group.barrier();
    });
  });
  ASSERT_TRUE(outcome.has_value());
  EXPECT_EQ(outcome->code(), ErrorCode::kPeerLost);
  EXPECT_EQ(outcome->context().peer_rank, 1);
}

}  // namespace
}  // namespace epistle::testing
