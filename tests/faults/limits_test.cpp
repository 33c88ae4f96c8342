// Limits of the operating system: descriptors, file sizes, address space, users without privileges, closed standard
// streams. Ranks either work or say, all of them, what they lack.
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include <fcntl.h>
#include <grp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"
#include "epistle/group.hpp"

#include "multiprocess/reporting_children.hpp"
#include "support/process_ranks.hpp"
#include "support/round_trip.hpp"

namespace epistle::testing {
namespace {

// Longer than a busy machine keeps a rank from going on: who waits in vain shows by kTimeout, not by the clock.
constexpr std::chrono::milliseconds kLimitTimeout{30'000};
constexpr std::chrono::milliseconds kLimitSlack{30'000};
constexpr uid_t kNobody = 65534;

void set_limit(__rlimit_resource resource, rlim_t value) {
  const rlimit limit{value, value};
  if (::setrlimit(resource, &limit) != 0) throw std::runtime_error("setrlimit failed");
}

Scenario tiny_scenario(int num_ranks) {
  Scenario scenario;
  scenario.config.hidden = 16;
  scenario.config.num_experts = num_ranks;
  scenario.config.top_k = 2;
  scenario.config.max_tokens = 2;
  scenario.tokens_per_rank.assign(static_cast<std::size_t>(num_ranks), 1);
  return scenario;
}

void play_round_trip(Group& group, const Round& round) {
  Subject subject(group, "direct", round.scenario().config);
  if (const Mismatch mismatch = round_trip(subject, round)) throw std::runtime_error(*mismatch);
  group.barrier();
}

/// Starts `num_ranks` ranks. Each calls `prepare`, joins, and makes a round trip.
class LimitedRanks {
 public:
  LimitedRanks(int num_ranks, const std::function<void(int rank)>& prepare,
               std::chrono::milliseconds timeout = kLimitTimeout)
      : num_ranks_(num_ranks), timeout_(timeout) {
    const std::string job = unique_job();
    const Round round(tiny_scenario(num_ranks), 0);
    std::vector<ReportingChildren::Body> bodies;
    for (int rank = 0; rank < num_ranks; ++rank) {
      bodies.emplace_back([&, rank](ChildReport&) {
        prepare(rank);
        Group group = join_process_group({.rank = rank, .num_ranks = num_ranks, .job = job}, {.timeout = timeout});
        play_round_trip(group, round);
      });
    }
    children_ = std::make_unique<ReportingChildren>(bodies);
  }

  /// All ranks end, and alike. Where they throw, it is the same error, that of a lack: not the loss of a rank.
  void expect_success_or_one_error(const std::string& part_of_message = "") {
    std::string text;
    for (std::size_t rank = 0; rank < children_->size(); ++rank) {
      const int status = children_->wait(rank, timeout_ * 2 + kLimitSlack);
      ASSERT_EQ(status, 0) << "rank " << rank
                           << (WIFSIGNALED(status) && status != -1 ? " died of a signal" : " did not come to its end");
      const ChildReport& report = children_->report(rank);
      text += fmt::format("\n  rank {}, {} ms: {} (peer {}) {}", rank, report.took_ms, to_string(report.code),
                          report.peer_rank, static_cast<const char*>(report.message));
    }
    for (std::size_t rank = 0; rank < children_->size(); ++rank) {
      const ChildReport& report = children_->report(rank);
      ASSERT_EQ(report.threw, children_->report(0).threw) << "some ranks throw, others do not:" << text;
      ASSERT_EQ(report.code, children_->report(0).code) << "different errors:" << text;
      if (!report.threw) continue;
      ASSERT_NE(report.code, ErrorCode::kPeerLost) << "nobody has exited:" << text;
      ASSERT_NE(report.code, ErrorCode::kTimeout) << "nobody is slow:" << text;
      ASSERT_FALSE(report.has_shared_memory) << text;
      if (report.peer_rank >= 0 && report.peer_rank != static_cast<int>(rank)) continue;
      ASSERT_NE(std::string(report.message).find(part_of_message), std::string::npos) << text;
    }
  }

  void expect_success() {
    expect_success_or_one_error();
    if (!::testing::Test::HasFatalFailure()) {
      EXPECT_FALSE(children_->report(0).threw) << children_->report(0).message;
    }
  }

  [[nodiscard]] const ChildReport& report(int rank) const { return children_->report(static_cast<std::size_t>(rank)); }

 private:
  int num_ranks_;
  std::chrono::milliseconds timeout_;
  std::unique_ptr<ReportingChildren> children_;
};

// ---- Descriptors ----------------------------------------------------------------------------------------------------

TEST(Limits, ManyRanksOfAUserWithoutPrivileges) {
  if (::getuid() != 0) GTEST_SKIP() << "only root can become a user that no other test runs as";
  constexpr int kNumRanks = 128;
  constexpr rlim_t kMaxDescriptors = 1024;
  LimitedRanks ranks(
      kNumRanks,
      [](int) {
        set_limit(RLIMIT_NOFILE, kMaxDescriptors);
        if (::setgroups(0, nullptr) != 0 || ::setgid(kNobody) != 0 || ::setuid(kNobody) != 0) {
          throw std::runtime_error("cannot become nobody");
        }
        ::prctl(PR_SET_DUMPABLE, 1);  // /proc/self stays readable
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      },
      std::chrono::milliseconds(30'000));
  ranks.expect_success();
}

class DescriptorLimit : public ::testing::TestWithParam<int> {};

TEST_P(DescriptorLimit, OfAllRanks) {
  const auto limit = static_cast<rlim_t>(GetParam());
  LimitedRanks ranks(8, [limit](int) { set_limit(RLIMIT_NOFILE, limit); });
  ranks.expect_success_or_one_error("ulimit -n");
}

TEST_P(DescriptorLimit, OfOneRank) {
  const auto limit = static_cast<rlim_t>(GetParam());
  for (const int limited : {0, 1, 7}) {
    SCOPED_TRACE("rank " + std::to_string(limited));
    LimitedRanks ranks(8, [=](int rank) {
      if (rank == limited) set_limit(RLIMIT_NOFILE, limit);
    });
    ranks.expect_success_or_one_error("ulimit -n");
    for (int rank = 0; rank < 8 && !HasFatalFailure(); ++rank) {
      if (rank != limited && ranks.report(rank).threw) {
        EXPECT_EQ(ranks.report(rank).peer_rank, limited);
      }
    }
  }
}

// From where joining is possible at all, to where all is.
INSTANTIATE_TEST_SUITE_P(All, DescriptorLimit,
                         ::testing::Values(9, 10, 11, 12, 14, 16, 17, 18, 20, 22, 24, 26, 28, 40));

// ---- Sizes ----------------------------------------------------------------------------------------------------------

class FileSizeLimit : public ::testing::TestWithParam<std::tuple<int, int>> {};

// A file that grows beyond the limit is SIGXFSZ, which ends a process that did not ask about it.
TEST_P(FileSizeLimit, IsAnErrorAndNoSignal) {
  const auto limit = static_cast<rlim_t>(std::get<0>(GetParam()));
  const int limited = std::get<1>(GetParam());
  LimitedRanks ranks(4, [=](int rank) {
    if (limited < 0 || rank == limited) set_limit(RLIMIT_FSIZE, limit);
  });
  ranks.expect_success_or_one_error("ulimit -f");
}

INSTANTIATE_TEST_SUITE_P(All, FileSizeLimit,
                         ::testing::Combine(::testing::Values(0, 1024, 4096, 16'384, 65'536, 1'048'576),
                                            ::testing::Values(-1, 0, 2)),
                         [](const auto& param_info) {
                           const int limited = std::get<1>(param_info.param);
                           return fmt::format("{}_{}", std::get<0>(param_info.param),
                                              limited < 0 ? std::string("all") : fmt::format("rank{}", limited));
                         });

rlim_t address_space_bytes() {
  std::ifstream stream("/proc/self/statm");
  rlim_t num_pages = 0;
  stream >> num_pages;
  return num_pages * static_cast<rlim_t>(::sysconf(_SC_PAGESIZE));
}

TEST(Limits, AddressSpaceOfOneRank) {
  constexpr rlim_t kRoomBytes = rlim_t{32} << 20;
  const DispatcherConfig large{.hidden = 8192, .num_experts = 8, .top_k = 2, .max_tokens = 65'536};
  const Round small(tiny_scenario(3), 0);
  for (const int limited : {0, 1, 2}) {
    SCOPED_TRACE("rank " + std::to_string(limited));
    const std::string job = unique_job();
    std::vector<ReportingChildren::Body> bodies;
    for (int rank = 0; rank < 3; ++rank) {
      bodies.emplace_back([&, rank](ChildReport& report) {
        Group group = join_process_group({.rank = rank, .num_ranks = 3, .job = job}, {.timeout = kLimitTimeout});
        rlimit before{};
        ::getrlimit(RLIMIT_AS, &before);
        const rlimit limit{address_space_bytes() + kRoomBytes, before.rlim_max};
        if (rank == limited) ::setrlimit(RLIMIT_AS, &limit);
        const Outcome outcome = outcome_of([&] { (void)Dispatcher(group, "direct", large); });
        ::setrlimit(RLIMIT_AS, &before);
        // What did not fit is gone, and the group goes on.
        play_round_trip(group, small);
        report.progress = 1;
        if (outcome) throw Error(*outcome);
      });
    }
    ReportingChildren children(bodies);
    for (std::size_t rank = 0; rank < 3; ++rank) {
      ASSERT_EQ(children.wait(rank, kLimitTimeout * 2 + kLimitSlack), 0) << "rank " << rank;
      const ChildReport& report = children.report(rank);
      ASSERT_TRUE(report.threw) << "rank " << rank;
      EXPECT_EQ(report.code, ErrorCode::kOutOfMemory) << "rank " << rank << ": " << report.message;
      EXPECT_EQ(report.progress, 1) << "rank " << rank << " cannot go on: " << report.message;
      if (static_cast<int>(rank) != limited) {
        EXPECT_EQ(report.peer_rank, limited) << report.message;
      }
    }
  }
}

// ---- Standard streams -----------------------------------------------------------------------------------------------

class ClosedStreams : public ::testing::TestWithParam<std::vector<int>> {};

// A file that took the number of a closed stream would get what the program prints.
TEST_P(ClosedStreams, WhatIsPrintedGoesNowhere) {
  constexpr int kNumRanks = 3;
  const std::string job = unique_job();
  const Round inputs(tiny_scenario(kNumRanks), 0);
  std::vector<ReportingChildren::Body> bodies;
  for (int rank = 0; rank < kNumRanks; ++rank) {
    bodies.emplace_back([&, rank](ChildReport& report) {
      for (const int fd : GetParam()) ::close(fd);
      const auto print = [] {
        const std::string text(100'000, '#');
        for (const int fd : GetParam()) (void)!::write(fd, text.data(), text.size());
      };
      Group group = join_process_group({.rank = rank, .num_ranks = kNumRanks, .job = job}, {.timeout = kLimitTimeout});
      print();
      group.barrier();
      Subject subject(group, "direct", inputs.scenario().config);
      print();
      for (int round = 0; round < 3; ++round) {
        if (const Mismatch mismatch = round_trip(subject, inputs)) {
          throw Error(ErrorCode::kVerificationFailed, *mismatch);
        }
        print();
      }
      group.barrier();
      report.progress = 1;
      // The library has none of these numbers, so they are free.
      for (const int fd : GetParam()) {
        if (::fcntl(fd, F_GETFD) != -1) throw Error(ErrorCode::kSystem, fmt::format("descriptor {} is taken", fd));
      }
    });
  }
  ReportingChildren children(bodies);
  for (std::size_t rank = 0; rank < kNumRanks; ++rank) {
    const int status = children.wait(rank, kLimitTimeout + kLimitSlack);
    ASSERT_EQ(status, 0) << "rank " << rank;
    EXPECT_FALSE(children.report(rank).threw) << children.report(rank).message;
    EXPECT_EQ(children.report(rank).progress, 1);
  }
}

INSTANTIATE_TEST_SUITE_P(All, ClosedStreams,
                         ::testing::Values(std::vector<int>{0}, std::vector<int>{1}, std::vector<int>{2},
                                           std::vector<int>{1, 2}, std::vector<int>{0, 1, 2}),
                         [](const auto& param_info) {
                           std::string name = "fd";
                           for (const int fd : param_info.param) name += std::to_string(fd);
                           return name;
                         });

}  // namespace
}  // namespace epistle::testing
