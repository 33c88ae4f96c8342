// Bytes and signals over libfabric: between ranks of one host and of two, in order and not, staged and not.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include <unistd.h>

#include <gtest/gtest.h>

#include "fabric/fabric_link.hpp"
#include "hosts/host_ranks.hpp"

namespace epistle::testing {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kPieceBytes = std::int64_t{8} << 20;

void require(bool condition, const std::string& what) {
  if (!condition) throw std::runtime_error(what);
}

/// What `source` puts to `destination`, in the first bytes of `bytes`.
void fill(std::vector<std::byte>& bytes, int source, int destination, std::int64_t round, std::int64_t num_bytes) {
  const std::int64_t start = source * 31 + destination * 17 + round * 7;
  std::byte* const data = bytes.data();
  for (std::int64_t idx = 0; idx < num_bytes; ++idx) data[idx] = static_cast<std::byte>(start + idx * 3 + (idx >> 8));
}

void wait_for_signals(GroupImpl& group, DomainLink& link, int peer, std::uint64_t num_signals) {
  const auto deadline = Clock::now() + group.timeout();
  while (link.signals_from(peer) < num_signals) require(Clock::now() < deadline, "a signal did not come");
}

void flush(GroupImpl& group, DomainLink& link) {
  const auto deadline = Clock::now() + group.timeout();
  while (!link.try_flush()) require(Clock::now() < deadline, "bytes were not delivered");
}

/// Every rank puts a block to every other, of sizes from one byte to some hundred thousand, signals, and looks at what
/// has come as soon as the signals have.
void exchange(Group& group, const FabricLinkOptions& options, int num_rounds) {
  GroupImpl& impl = group.impl();
  const SymmetricRegion region = impl.create_region(kPieceBytes);
  region.commit(0, kPieceBytes);
  const auto link = make_fabric_link(impl, region, options);
  // In two steps, as memory is committed; a put may lie in both.
  link->expose(0, kPieceBytes / 2);
  link->expose(kPieceBytes / 2, kPieceBytes / 2);
  const std::int64_t num_ranks = group.size();
  // Two halves in turns: one is written while the other may still be read.
  const std::int64_t block = kPieceBytes / (2 * num_ranks);
  std::vector<std::byte> source(static_cast<std::size_t>(block * num_ranks));
  std::vector<std::byte> expected(static_cast<std::size_t>(block));
  for (std::int64_t round = 0; round < num_rounds; ++round) {
    const std::int64_t num_bytes = std::min<std::int64_t>(block, 1 + round * round * 9'001);
    const auto place_of = [&](int rank) { return (round % 2 * num_ranks + rank) * block; };
    for (int peer = 0; peer < group.size(); ++peer) {
      if (peer == group.rank()) continue;
      std::byte* const begin = source.data() + peer * block;
      fill(expected, group.rank(), peer, round, num_bytes);
      std::copy_n(expected.begin(), num_bytes, begin);
      link->put(peer, place_of(group.rank()), begin, num_bytes);
      link->signal(peer);
    }
    for (int peer = 0; peer < group.size(); ++peer) {
      if (peer == group.rank()) continue;
      wait_for_signals(impl, *link, peer, static_cast<std::uint64_t>(round) + 1);
      fill(expected, peer, group.rank(), round, num_bytes);
      require(std::memcmp(region.own() + place_of(peer), expected.data(), static_cast<std::size_t>(num_bytes)) == 0,
              "bytes of rank " + std::to_string(peer) + " in round " + std::to_string(round));
    }
    flush(impl, *link);
  }
  require(link->describe().find("tcp") != std::string::npos, link->describe());
  impl.barrier();
}

class FabricLinks : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string lack = lack_of_fabric(); !lack.empty()) GTEST_SKIP() << lack;
  }
};

FabricLinkOptions over_loopback(bool assume_unordered) {
  return {.request = {.provider = "tcp", .address = "127.0.0.1"}, .assume_unordered = assume_unordered};
}

TEST_F(FabricLinks, SignalsArriveBehindTheBytesWhereTheProviderKeepsTheOrder) {
  ReportingChildren children(
      host_ranks(make_hosts_job(2, 2), [](Group& group, ChildReport&) { exchange(group, over_loopback(false), 12); }));
  expect_all_well(children);
}

TEST_F(FabricLinks, SignalsArriveBehindTheBytesWhereItDoesNot) {
  ReportingChildren children(
      host_ranks(make_hosts_job(2, 1), [](Group& group, ChildReport&) { exchange(group, over_loopback(true), 12); }));
  expect_all_well(children);
}

TEST_F(FabricLinks, SourcesThatMustBeRegisteredAreStaged) {
  ReportingChildren children(host_ranks(make_hosts_job(2, 1), [](Group& group, ChildReport&) {
    FabricLinkOptions options = over_loopback(true);
    options.request.stage_sources = true;
    exchange(group, options, 16);
  }));
  expect_all_well(children);
}

TEST_F(FabricLinks, ManySmallPutsAreHeldBackAndAllArrive) {
  ReportingChildren children(host_ranks(make_hosts_job(2, 1), [](Group& group, ChildReport&) {
    GroupImpl& impl = group.impl();
    const SymmetricRegion region = impl.create_region(kPieceBytes);
    region.commit(0, kPieceBytes);
    const auto link = make_fabric_link(impl, region);
    link->expose(0, kPieceBytes);
    constexpr std::int64_t kNumPuts = 20'000;
    std::vector<std::int64_t> values(kNumPuts);
    for (std::int64_t idx = 0; idx < kNumPuts; ++idx) values[static_cast<std::size_t>(idx)] = idx * 5 + group.rank();
    const int peer = 1 - group.rank();
    for (std::int64_t idx = 0; idx < kNumPuts; ++idx) {
      link->put(peer, idx * 8, &values[static_cast<std::size_t>(idx)], 8);
    }
    link->signal(peer);
    require(link->sent_bytes() == kNumPuts * 8, "counted bytes");
    wait_for_signals(impl, *link, peer, 1);
    for (std::int64_t idx = 0; idx < kNumPuts; ++idx) {
      std::int64_t found = 0;
      std::memcpy(&found, region.own() + idx * 8, sizeof(found));
      if (found != idx * 5 + peer) require(false, "value " + std::to_string(idx));
    }
    flush(impl, *link);
    impl.barrier();
  }));
  expect_all_well(children);
}

TEST_F(FabricLinks, BytesArriveWhileTheReceiverDoesSomethingElse) {
  ReportingChildren children(host_ranks(make_hosts_job(2, 1), [](Group& group, ChildReport&) {
    GroupImpl& impl = group.impl();
    const SymmetricRegion region = impl.create_region(kPieceBytes);
    region.commit(0, kPieceBytes);
    const auto link = make_fabric_link(impl, region);
    link->expose(0, kPieceBytes);
    std::vector<std::byte> bytes(kPieceBytes, std::byte{7});
    if (group.rank() == 0) {
      link->put(1, 0, bytes.data(), kPieceBytes);
      flush(impl, *link);
    }
    // Rank 1 waits here, and asks the link for nothing.
    impl.barrier();
    if (group.rank() == 1) require(std::memcmp(region.own(), bytes.data(), bytes.size()) == 0, "bytes");
    impl.barrier();
  }));
  expect_all_well(children);
}

TEST_F(FabricLinks, PutsOutsideOfWhatIsExposedAreRefused) {
  ReportingChildren children(host_ranks(make_hosts_job(2, 1), [](Group& group, ChildReport&) {
    GroupImpl& impl = group.impl();
    const SymmetricRegion region = impl.create_region(kPieceBytes);
    region.commit(0, kPieceBytes);
    const auto link = make_fabric_link(impl, region);
    link->expose(0, 4096);
    const std::byte value{1};
    try {
      link->put(1 - group.rank(), 4096, &value, 1);
      require(false, "it was not refused");
    } catch (const Error& error) {
      require(error.code() == ErrorCode::kInvalidArgument, error.what());
    }
    impl.barrier();
  }));
  expect_all_well(children);
}

TEST_F(FabricLinks, UnknownProviderIsRefusedOnAllRanks) {
  ReportingChildren children(host_ranks(make_hosts_job(2, 1), [](Group& group, ChildReport&) {
    const SymmetricRegion region = group.impl().create_region(4096);
    try {
      (void)make_fabric_link(group.impl(), region, {.request = {.provider = group.rank() == 1 ? "pigeon" : "tcp"}});
      require(false, "it was not refused");
    } catch (const Error& error) {
      require(error.code() == (group.rank() == 1 ? ErrorCode::kUnsupported : ErrorCode::kPeerRejected), error.what());
      require(std::string(error.what()).find("pigeon") != std::string::npos, error.what());
    }
    group.barrier();
  }));
  expect_all_well(children);
}

TEST_F(FabricLinks, LostPeerIsNamed) {
  HostsJob job = make_hosts_job(2, 1);
  job.timeout = std::chrono::milliseconds(3000);
  ReportingChildren children(host_ranks(job, [](Group& group, ChildReport&) {
    GroupImpl& impl = group.impl();
    const SymmetricRegion region = impl.create_region(kPieceBytes);
    region.commit(0, kPieceBytes);
    const auto link = make_fabric_link(impl, region);
    link->expose(0, kPieceBytes);
    std::vector<std::byte> bytes(kPieceBytes);
    for (int round = 0;; ++round) {
      if (group.rank() == 1 && round == 5) ::kill(::getpid(), SIGKILL);
      link->put(1 - group.rank(), 0, bytes.data(), kPieceBytes);
      impl.barrier();
    }
  }));
  expect_same_error(children, 1, ErrorCode::kPeerLost, 1, std::chrono::milliseconds(6000));
}

// A put that goes by way of the stage in several parts, to a peer that does not even take the connection.
TEST_F(FabricLinks, StoppedPeerOfAStagedPutIsNamedWithinTheTimeout) {
  HostsJob job = make_hosts_job(2, 1);
  job.timeout = std::chrono::milliseconds(1500);
  ReportingChildren children(host_ranks(job, [](Group& group, ChildReport&) {
    GroupImpl& impl = group.impl();
    const SymmetricRegion region = impl.create_region(kPieceBytes);
    region.commit(0, kPieceBytes);
    FabricLinkOptions options = over_loopback(true);
    options.request.stage_sources = true;
    const auto link = make_fabric_link(impl, region, options);
    link->expose(0, kPieceBytes);
    if (group.rank() == 1) ::kill(::getpid(), SIGSTOP);
    const std::vector<std::byte> bytes(kPieceBytes);
    for (;;) link->put(1, 0, bytes.data(), kPieceBytes);
  }));
  expect_same_error(children, 1, ErrorCode::kTimeout, 1, std::chrono::milliseconds(4000));
}

}  // namespace
}  // namespace epistle::testing
