// Groups over hosts: who is where, steps that all take together, and what all learn of a failure.
#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <sys/resource.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "core/settings.hpp"
#include "group/group_impl.hpp"
#include "hosts/host_ranks.hpp"

namespace epistle::testing {
namespace {

using std::chrono::milliseconds;

void require(bool condition, const char* what) {
  if (!condition) throw std::runtime_error(what);
}

struct Shape {
  int num_hosts;
  int ranks_per_host;
};

class GroupOverHosts : public ::testing::TestWithParam<Shape> {};

TEST_P(GroupOverHosts, StepsPassAndBytesOfAllArrive) {
  const HostsJob job = make_hosts_job(GetParam().num_hosts, GetParam().ranks_per_host);
  ReportingChildren children(host_ranks(job, [&job](Group& group, ChildReport&) {
    require(group.num_hosts() == job.host_of.back() + 1, "number of hosts");
    for (int rank = 0; rank < group.size(); ++rank) {
      require(group.host_of(rank) == job.host_of[static_cast<std::size_t>(rank)], "host of a rank");
    }
    for (int round = 0; round < 50; ++round) group.barrier();
    // More than fits into one step, and a size that differs from it by a few bytes.
    for (const std::size_t num_bytes : {std::size_t{1}, std::size_t{4096}, std::size_t{10'007}}) {
      std::vector<unsigned char> own(num_bytes);
      std::vector<unsigned char> all(num_bytes * static_cast<std::size_t>(group.size()));
      for (std::size_t idx = 0; idx < num_bytes; ++idx) {
        own[idx] = static_cast<unsigned char>(idx * 7 + static_cast<std::size_t>(group.rank()));
      }
      group.all_gather(own.data(), num_bytes, all.data());
      for (std::size_t idx = 0; idx < all.size(); ++idx) {
        require(all[idx] == static_cast<unsigned char>(idx % num_bytes * 7 + idx / num_bytes), "a gathered byte");
      }
    }
    group.barrier();
  }));
  expect_all_well(children);
}

INSTANTIATE_TEST_SUITE_P(Shapes, GroupOverHosts,
                         ::testing::Values(Shape{2, 1}, Shape{2, 2}, Shape{4, 2}, Shape{1, 3}, Shape{7, 1}),
                         [](const auto& shape) {
                           return std::to_string(shape.param.num_hosts) + "Hosts" +
                                  std::to_string(shape.param.ranks_per_host) + "Each";
                         });

TEST(GroupOverHostsOnce, RanksMayBeDealtOutInTurns) {
  HostsJob job = make_hosts_job(2, 2);
  job.host_of = {0, 1, 0, 1};
  ReportingChildren children(host_ranks(job, [](Group& group, ChildReport&) {
    const int own = group.rank() * 3;
    std::vector<int> all(4);
    group.all_gather(&own, sizeof(own), all.data());
    require(all == std::vector<int>({0, 3, 6, 9}), "gathered numbers");
    // Ranks of one host have a region together, with the pieces of theirs.
    GroupImpl& impl = group.impl();
    const SymmetricRegion region = impl.create_region(4096);
    region.commit(0, 4096);
    impl.barrier();
    const int beside = (group.rank() + 2) % 4;
    require(region.has(beside) && !region.has((group.rank() + 1) % 4), "pieces of the region");
    std::memcpy(region.base(beside), &own, sizeof(own));
    impl.barrier();
    int found = 0;
    std::memcpy(&found, region.own(), sizeof(found));
    require(found == beside * 3, "what the other rank of the host has written");
  }));
  expect_all_well(children);
}

TEST(GroupOverHostsOnce, DescriptorsReachTheRanksOfTheHost) {
  HostsJob job = make_hosts_job(2, 2);
  job.host_of = {0, 1, 0, 1};
  ReportingChildren children(host_ranks(job, [](Group& group, ChildReport&) {
    for (int round = 0; round < 2; ++round) {
      const std::int64_t num_bytes = 4096 * (group.rank() + 1) + round;
      const std::vector<UniqueFd> files = group.impl().exchange_fds(create_shared_file(num_bytes));
      for (int peer = 0; peer < group.size(); ++peer) {
        const UniqueFd& file = files[static_cast<std::size_t>(peer)];
        require(file.valid() == (peer % 2 == group.rank() % 2), "whose descriptors came");
        if (!file.valid()) continue;
        require(::lseek(file.get(), 0, SEEK_END) == 4096 * (peer + 1) + round, "what a descriptor is of");
      }
    }
    group.barrier();  // the first to leave must not be taken for lost
  }));
  expect_all_well(children);
}

TEST(GroupOverHostsOnce, DifferentCallsAreFoundByAllAndTheGroupGoesOn) {
  const HostsJob job = make_hosts_job(2, 2);
  ReportingChildren children(host_ranks(job, [](Group& group, ChildReport&) {
    std::vector<int> all(4);
    const int own = 1;
    try {
      if (group.rank() == 3) {
        group.barrier();
      } else {
        group.all_gather(&own, sizeof(own), all.data());
      }
      require(false, "different calls were taken for the same");
    } catch (const Error& error) {
      require(error.code() == ErrorCode::kShapeMismatch, error.what());
    }
    group.barrier();
  }));
  expect_all_well(children);
}

TEST(GroupOverHostsOnce, RefusalOfOneRankIsToldWithItsReason) {
  const HostsJob job = make_hosts_job(2, 2);
  ReportingChildren children(host_ranks(job, [](Group& group, ChildReport&) {
    const int own = 1;
    std::vector<int> all(4);
    try {
      group.all_gather(&own, sizeof(own), group.rank() == 2 ? nullptr : all.data());
      require(false, "nothing was refused");
    } catch (const Error& error) {
      require(error.code() == (group.rank() == 2 ? ErrorCode::kInvalidArgument : ErrorCode::kPeerRejected),
              error.what());
      require(std::string(error.what()).find("all_gather is null") != std::string::npos, error.what());
    }
    group.barrier();
  }));
  expect_all_well(children);
}

TEST(GroupOverHostsOnce, TextsOfACallerFormAGroupWithoutAnAddress) {
  // The function that gathers: a group of one host, as an engine would have.
  HostsJob job = make_hosts_job(2, 2);
  std::vector<ReportingChildren::Body> bodies;
  for (int rank = 0; rank < 4; ++rank) {
    bodies.emplace_back([job, rank](ChildReport&) {
      Group outer = join_process_group({.rank = rank, .num_ranks = 4, .job = job.name});
      const GatherTexts gather = [&outer](const std::string& own) {
        std::vector<std::size_t> sizes(4);
        const std::size_t size = own.size();
        outer.all_gather(&size, sizeof(size), sizes.data());
        const std::size_t room = *std::max_element(sizes.begin(), sizes.end());
        std::string padded = own;
        padded.resize(room);
        std::string all(room * 4, '\0');
        outer.all_gather(padded.data(), room, all.data());
        std::vector<std::string> texts;
        for (std::size_t peer = 0; peer < 4; ++peer) texts.push_back(all.substr(peer * room, sizes[peer]));
        return texts;
      };
      ::setenv("EPISTLE_HOST_ID", rank < 2 ? "left" : "right", 1);
      ::setenv("EPISTLE_INTERFACE", "lo", 1);
      reload_settings_for_testing();
      Group group = join_process_group(rank, 4, gather);
      require(group.num_hosts() == 2, "two hosts");
      group.barrier();
    });
  }
  ReportingChildren children(bodies);
  expect_all_well(children);
}

/// Lowers the limit so far that this process can open so many, while it lives.
class FewDescriptors {
 public:
  explicit FewDescriptors(int num_free) {
    std::vector<int> opened;
    for (int idx = 0; idx <= num_free; ++idx) opened.push_back(::dup(STDERR_FILENO));
    for (const int file : opened) ::close(file);
    ::getrlimit(RLIMIT_NOFILE, &before_);
    rlimit limit = before_;
    limit.rlim_cur = static_cast<rlim_t>(opened.back());
    ::setrlimit(RLIMIT_NOFILE, &limit);
  }
  ~FewDescriptors() { ::setrlimit(RLIMIT_NOFILE, &before_); }
  FewDescriptors(const FewDescriptors&) = delete;
  FewDescriptors& operator=(const FewDescriptors&) = delete;

 private:
  rlimit before_{};
};

// ---- Failures -------------------------------------------------------------------------------------------------------

constexpr milliseconds kFailureTimeout{2000};
constexpr milliseconds kFailureLimit{4000};

/// All ranks pass barriers for ever; the victim ends or stops on its own in the middle.
ReportingChildren::Body endless(const HostsJob& job, int rank, int victim, int signal) {
  return host_rank(job, rank, [victim, signal](Group& group, ChildReport&) {
    for (int round = 0;; ++round) {
      group.barrier();
      if (group.rank() == victim && round == 20) ::kill(::getpid(), signal);
    }
  });
}

void expect_named(int victim, int signal, ErrorCode code) {
  HostsJob job = make_hosts_job(3, 2);
  job.timeout = kFailureTimeout;
  std::vector<ReportingChildren::Body> bodies;
  for (int rank = 0; rank < job.num_ranks(); ++rank) bodies.push_back(endless(job, rank, victim, signal));
  ReportingChildren children(bodies);
  expect_same_error(children, victim, code, victim, kFailureLimit);
}

// Of the first host and of another, the rank that leads and one that does not.
TEST(FailuresOverHosts, KilledRootIsNamedByAll) { expect_named(0, SIGKILL, ErrorCode::kPeerLost); }
TEST(FailuresOverHosts, KilledRankBesideTheRootIsNamedByAll) { expect_named(1, SIGKILL, ErrorCode::kPeerLost); }
TEST(FailuresOverHosts, KilledLeaderIsNamedByAll) { expect_named(2, SIGKILL, ErrorCode::kPeerLost); }
TEST(FailuresOverHosts, KilledRankIsNamedByAll) { expect_named(5, SIGKILL, ErrorCode::kPeerLost); }
TEST(FailuresOverHosts, StoppedRankIsNamedByAll) { expect_named(3, SIGSTOP, ErrorCode::kTimeout); }
TEST(FailuresOverHosts, StoppedLeaderIsNamedByAll) { expect_named(4, SIGSTOP, ErrorCode::kTimeout); }
TEST(FailuresOverHosts, StoppedRootIsNamedByAll) { expect_named(0, SIGSTOP, ErrorCode::kTimeout); }

// It has arrived where the other rank of its host waits, which sees no step of it missing: only nothing comes any more.
TEST(FailuresOverHosts, LeaderThatIsKilledInsideAStepIsNamedByAllAtOnce) {
  HostsJob job = make_hosts_job(2, 2);
  constexpr milliseconds kOthersComeLater{500};
  ReportingChildren children(host_ranks(job, [&](Group& group, ChildReport&) {
    group.barrier();
    std::thread killer;
    if (group.host_of(group.rank()) == 0) std::this_thread::sleep_for(kOthersComeLater * 2);
    if (group.rank() == 2) {
      killer = std::thread([&] {
        std::this_thread::sleep_for(kOthersComeLater);
        ::kill(::getpid(), SIGKILL);
      });
    }
    // The others may have come through the first: it had arrived.
    group.barrier();
    group.barrier();
    if (killer.joinable()) killer.join();
  }));
  expect_same_error(children, 2, ErrorCode::kPeerLost, 2, kFailureLimit);
}

/// Descriptors run out on one rank, at every place where a group over hosts is made.
class DescriptorsRunOut : public ::testing::TestWithParam<int> {};

TEST_P(DescriptorsRunOut, WhileHostsMeetAndAllAreToldTheSame) {
  const int victim = GetParam();
  // With fewer it cannot speak to anybody.
  constexpr int kFewestFree = 3;
  constexpr int kMostFree = 10;
  int num_failures = 0;
  for (int num_free = victim == 1 ? 1 : kFewestFree; num_free < kMostFree; ++num_free) {
    SCOPED_TRACE("free descriptors: " + std::to_string(num_free));
    HostsJob job = make_hosts_job(3, 2);
    job.timeout = milliseconds(4000);
    std::vector<ReportingChildren::Body> bodies;
    for (int rank = 0; rank < job.num_ranks(); ++rank) {
      const auto body = host_rank(job, rank, [](Group& group, ChildReport&) { group.barrier(); });
      bodies.emplace_back([=](ChildReport& report) {
        std::optional<FewDescriptors> few;
        if (rank == victim) few.emplace(num_free);
        body(report);
      });
    }
    ReportingChildren children(bodies);
    std::set<std::pair<ErrorCode, int>> errors;
    for (int rank = 0; rank < job.num_ranks(); ++rank) {
      const auto idx = static_cast<std::size_t>(rank);
      ASSERT_EQ(children.wait(idx), 0);
      const ChildReport& report = children.report(idx);
      EXPECT_LT(report.took_ms, job.timeout.count()) << report.message;
      const int at_fault = report.peer_rank >= 0 ? report.peer_rank : rank;
      errors.emplace(report.threw ? report.code : ErrorCode::kOk, report.threw ? at_fault : -1);
    }
    EXPECT_EQ(errors.size(), 1U) << children.report(0).message << " / " << children.report(5).message;
    if (errors != std::set<std::pair<ErrorCode, int>>{{ErrorCode::kOk, -1}}) ++num_failures;
  }
  EXPECT_GT(num_failures, 0);
  EXPECT_LT(num_failures, kMostFree);
}

INSTANTIATE_TEST_SUITE_P(Ranks, DescriptorsRunOut, ::testing::Values(0, 1, 2));

TEST(FailuresOverHosts, RankThatLeavesIsNamedByAll) {
  const HostsJob job = make_hosts_job(2, 2);
  ReportingChildren children(host_ranks(job, [](Group& group, ChildReport&) {
    for (int round = 0;; ++round) {
      group.barrier();
      if (group.rank() == 3 && round == 3) return;
    }
  }));
  expect_same_error(children, 3, ErrorCode::kPeerLost, 3, kFailureLimit);
}

TEST(FailuresOverHosts, AbortReachesAllHosts) {
  const HostsJob job = make_hosts_job(2, 2);
  ReportingChildren children(host_ranks(job, [](Group& group, ChildReport&) {
    group.barrier();
    if (group.rank() == 2) group.impl().abort();
    group.barrier();
  }));
  for (std::size_t idx = 0; idx < children.size(); ++idx) {
    ASSERT_EQ(children.wait(idx), 0);
    EXPECT_EQ(children.report(idx).code, ErrorCode::kAborted) << children.report(idx).message;
    EXPECT_LT(children.report(idx).took_ms, kFailureLimit.count());
  }
}

// A host whose processes stand still for less than the timeout takes nothing away.
TEST(FailuresOverHosts, HostThatPausesGoesOn) {
  HostsJob job = make_hosts_job(2, 2);
  job.timeout = milliseconds(8000);
  constexpr int kPaused = 1;
  ReportingChildren children(host_ranks(job, [](Group& group, ChildReport& report) {
    for (int round = 0; round < 2000; ++round) {
      group.barrier();
      report.progress = round;
    }
  }));
  while (children.report(2).progress < 100) std::this_thread::sleep_for(milliseconds(1));
  for (const std::size_t idx : {2U, 3U}) children.send(idx, SIGSTOP);
  std::this_thread::sleep_for(std::chrono::seconds(kPaused));
  for (const std::size_t idx : {2U, 3U}) children.send(idx, SIGCONT);
  expect_all_well(children);
}

}  // namespace
}  // namespace epistle::testing
