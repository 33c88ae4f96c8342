#include "measure/network_limit.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <thread>
#include <vector>

#include "fabric/fabric_link.hpp"
#include "group/group_impl.hpp"
#include "measure/statistics.hpp"

namespace epistle {
namespace {

using Clock = std::chrono::steady_clock;

// Enough that starting and ending do not count at 10 Gbit/s, and that a second is enough at 1 Gbit/s.
constexpr std::int64_t kRoundBytes = std::int64_t{8} << 20;
constexpr std::int64_t kPutBytes = std::int64_t{256} << 10;
constexpr int kNumRounds = 3;
constexpr std::chrono::microseconds kPause{50};

/// The rank of this one's index in the next domain that the network leads to, or the next behind it that is not masked
/// out; this rank where there is none.
int rank_across(const Group& group) {
  if (!takes_fabric_links(group.impl())) return group.rank();
  const bool over_hosts = group.num_hosts() > 1;
  const int own = group.domain_of(group.rank());
  const int size = group.domain_size();
  for (int step = 1; step < group.num_domains(); ++step) {
    const int first = (own + step) % group.num_domains() * size;
    if (over_hosts && group.host_of(first) == group.host_of(group.rank())) continue;
    for (int behind = 0; behind < size; ++behind) {
      const int rank = first + (group.index_in_domain(group.rank()) + behind) % size;
      if (!group.is_masked(rank)) return rank;
    }
  }
  return group.rank();
}

void deliver(Group& group, DomainLink& link, int peer) {
  const Clock::time_point start = Clock::now();
  while (!link.try_flush()) {
    std::this_thread::sleep_for(kPause);
    group.impl().check_usable();
    group.impl().fail_if_lost(Phase::kBarrier);
    if (Clock::now() - start > group.timeout()) group.impl().fail(ErrorCode::kTimeout, Phase::kBarrier, peer);
  }
}

double seconds_of_slowest(Group& group, double own_s) {
  std::vector<double> all(static_cast<std::size_t>(group.size()));
  group.all_gather(&own_s, sizeof(own_s), all.data());
  return *std::max_element(all.begin(), all.end());
}

std::vector<std::string> gather_transports(Group& group, const std::string& own) {
  std::array<char, 128> text{};
  std::copy_n(own.begin(), std::min(own.size(), text.size() - 1), text.begin());
  std::vector<std::array<char, 128>> all(static_cast<std::size_t>(group.size()));
  group.all_gather(text.data(), text.size(), all.data());
  std::vector<std::string> transports;
  transports.reserve(all.size());
  for (int rank = 0; rank < group.size(); ++rank) {
    // Who is masked out has told nothing.
    const int teller = group.is_masked(rank) ? group.impl().first_member() : rank;
    transports.emplace_back(all[static_cast<std::size_t>(teller)].data());
  }
  return transports;
}

NetworkLimit measure(Group& group) {
  GroupImpl& impl = group.impl();
  const SymmetricRegion region = impl.create_region(kRoundBytes);
  impl.take_together({.kind = CallKind::kCreateRegion}, Phase::kCreate, [&] { region.commit(0, kRoundBytes); });
  const auto link = make_fabric_link(impl, region);
  link->expose(0, kRoundBytes);
  const std::vector<std::byte> source(static_cast<std::size_t>(kPutBytes));
  const int peer = rank_across(group);
  // Connections are made by the first byte.
  link->put(peer, 0, source.data(), 1);
  deliver(group, *link, peer);
  NetworkLimit limit{.bytes_per_s = 0.0, .transports = gather_transports(group, link->describe())};
  for (int round = 0; round < kNumRounds; ++round) {
    group.barrier();
    const Clock::time_point start = Clock::now();
    for (std::int64_t done = 0; done < kRoundBytes; done += kPutBytes) link->put(peer, done, source.data(), kPutBytes);
    deliver(group, *link, peer);
    const double took_s = seconds_of_slowest(group, std::chrono::duration<double>(Clock::now() - start).count());
    limit.bytes_per_s = std::max(limit.bytes_per_s, static_cast<double>(kRoundBytes) / took_s);
  }
  return limit;
}

}  // namespace

bool crosses_network(const Group& group) { return rank_across(group) != group.rank(); }

void add_network_limit(Group& group, BenchResult& result) {
  result.network = measure(group);
  for (PhaseResult& phase : result.phases) {
    if (phase.time_us.median <= 0.0) continue;
    const double network_bytes_per_us = static_cast<double>(phase.link_bytes.network) / phase.time_us.median;
    phase.network_fraction = network_bytes_per_us * kMicrosPerSecond / result.network->bytes_per_s;
  }
}

}  // namespace epistle
