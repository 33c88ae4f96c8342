// Domains: what may be declared, and the links between them.
#include "group/domains.hpp"

#include <cstddef>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/error.hpp"
#include "epistle/group.hpp"

#include "group/group_impl.hpp"
#include "support/process_ranks.hpp"
#include "support/round_trip.hpp"

namespace epistle::testing {
namespace {

TEST(Domains, AreAllRanksOfTheHostUnlessDeclared) {
  const std::vector<Group> groups = make_thread_groups(6);
  EXPECT_EQ(groups[4].domain_size(), 6);
  EXPECT_EQ(groups[4].num_domains(), 1);
  EXPECT_EQ(groups[4].domain_of(5), 0);
}

TEST(Domains, AreBlocksOfRanks) {
  const std::vector<Group> groups = make_thread_groups(6, {.domain_size = 2});
  EXPECT_EQ(groups[0].domain_size(), 2);
  EXPECT_EQ(groups[0].num_domains(), 3);
  EXPECT_EQ(groups[0].domain_of(3), 1);
  EXPECT_EQ(groups[0].index_in_domain(3), 1);
}

TEST(Domains, ThatDoNotFitAreRefusedWithWhatWasFound) {
  for (const auto& [size, part] : {std::pair{4, "domains are of one size"}, std::pair{12, "no more ranks than"},
                                   std::pair{-1, "at least one rank"}}) {
    const Outcome outcome = outcome_of([declared = size] { (void)make_thread_groups(6, {.domain_size = declared}); });
    ASSERT_TRUE(outcome.has_value()) << size;
    EXPECT_EQ(outcome->code(), ErrorCode::kInvalidArgument);
    const std::string message = outcome->what();
    for (const std::string& expected :
         {std::to_string(size), std::string("6 ranks were found"), std::string(part), std::string("1, 2, 3, 6")}) {
      EXPECT_NE(message.find(expected), std::string::npos) << message;
    }
  }
}

TEST(Domains, DifferingBetweenRanksAreNamedOnAll) {
  const std::string job = unique_job();
  std::vector<pid_t> children;
  for (int rank = 0; rank < 2; ++rank) {
    const pid_t child = ::fork();
    if (child == 0) {
      int exit_code = 0;
      const Outcome outcome = outcome_of(
          [&] { (void)join_process_group({.rank = rank, .num_ranks = 2, .job = job}, {.domain_size = rank + 1}); });
      const std::string message = outcome ? outcome->what() : "";
      if (!outcome || outcome->code() != ErrorCode::kShapeMismatch) exit_code = 1;
      if (message.find("rank 0 has domains of 1 ranks, rank 1 domains of 2") == std::string::npos) exit_code = 2;
      ::_exit(exit_code);
    }
    children.push_back(child);
  }
  for (const pid_t child : children) EXPECT_EQ(wait_for(child), 0);
}

TEST(Domains, ThatOneRankCannotHaveAreRefusedOnAll) {
  const std::string job = unique_job();
  std::vector<pid_t> children;
  for (int rank = 0; rank < 2; ++rank) {
    const pid_t child = ::fork();
    if (child == 0) {
      const Outcome outcome = outcome_of([&] {
        (void)join_process_group({.rank = rank, .num_ranks = 2, .job = job}, {.domain_size = rank == 1 ? 5 : 1});
      });
      const ErrorCode expected = rank == 1 ? ErrorCode::kInvalidArgument : ErrorCode::kPeerRejected;
      ::_exit(outcome && outcome->code() == expected ? 0 : 1);
    }
    children.push_back(child);
  }
  for (const pid_t child : children) EXPECT_EQ(wait_for(child), 0);
}

TEST(MappedLink, BringsBytesBeforeTheSignalBehindThem) {
  constexpr std::int64_t kBytes = 4096;
  const auto play = [](Group& group) {
    GroupImpl& impl = group.impl();
    SymmetricRegion region = impl.create_region(kBytes);
    region.commit(0, kBytes);
    const std::unique_ptr<DomainLink> link = impl.open_link(region);
    link->expose(0, kBytes);
    group.barrier();
    const int peer = 1 - group.rank();
    EXPECT_EQ(link->signals_from(peer), 0U);
    group.barrier();
    const std::vector<char> text(64, group.rank() == 0 ? 'a' : 'b');
    link->put(peer, 128, text.data(), static_cast<std::int64_t>(text.size()));
    link->put(peer, 0, nullptr, 0);
    link->signal(peer);
    EXPECT_EQ(link->sent_bytes(), 64);
    while (!link->try_flush() || link->signals_from(peer) == 0) std::this_thread::yield();
    EXPECT_EQ(link->signals_from(peer), 1U);
    const std::vector<char> expected(64, group.rank() == 0 ? 'b' : 'a');
    EXPECT_EQ(std::memcmp(region.own() + 128, expected.data(), expected.size()), 0);
    EXPECT_FALSE(link->describe().empty());
    group.barrier();
  };
  run_thread_ranks(2, play, {.domain_size = 1});
}

TEST(MappedLink, IsTheOnlyWayToOtherDomainsOfProcesses) {
  constexpr std::int64_t kBytes = 4096;
  const auto play = [](Group& group) {
    GroupImpl& impl = group.impl();
    SymmetricRegion region = impl.create_region(kBytes);
    region.commit(0, kBytes);
    const std::unique_ptr<DomainLink> link = impl.open_link(region);
    group.barrier();
    region.base(group.rank() ^ 1)[0] = std::byte{1};  // of this domain
    const int far = (group.rank() + 2) % 4;
    const std::byte value{7};
    link->put(far, 1, &value, 1);
    group.barrier();
    if (region.own()[0] != std::byte{1} || region.own()[1] != value) return 1;
    if (group.rank() != 0) return 0;
    region.base(far)[0] = std::byte{1};
    return 2;
  };
  const std::vector<int> exits = run_process_ranks(4, play, {.domain_size = 2});
  // By SIGSEGV, or as a sanitizer reports it.
  EXPECT_NE(exits[0], 0);
  EXPECT_NE(exits[0], 2);
  for (std::size_t rank = 1; rank < exits.size(); ++rank) EXPECT_EQ(exits[rank], 0) << rank;
}

}  // namespace
}  // namespace epistle::testing
