// Dispatchers on groups of several hosts: those that reach into the memory of every rank say that they cannot; `hybrid`
// and `alltoall` go by the network.
#include <cstddef>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"
#include "epistle/routing.hpp"

#include "hosts/host_ranks.hpp"
#include "support/named_scenarios.hpp"
#include "support/player.hpp"

namespace epistle::testing {
namespace {

TEST(DispatchersOverHosts, AreRefusedOnAllRanksAndTheGroupGoesOn) {
  ReportingChildren children(host_ranks(make_hosts_job(2, 1), [](Group& group, ChildReport&) {
    for (const DispatcherInfo* info : dispatchers()) {
      if (info->device() != Device::kHost || info->capabilities().joins_hosts) continue;
      try {
        const Dispatcher dispatcher(group, info->name(), {.hidden = 64, .num_experts = 8, .top_k = 2, .max_tokens = 4});
        throw std::runtime_error(std::string(info->name()) + " was made");
      } catch (const Error& error) {
        const std::string text = error.what();
        if (error.code() != ErrorCode::kUnsupported || text.find("on 2 hosts") == std::string::npos) throw;
      }
    }
    group.barrier();
  }));
  expect_all_well(children);
}

using ScenariosOf = std::function<std::vector<NamedScenario>(int num_ranks, int domain_size)>;

/// One group for all: hosts take longer to meet than most of the scenarios.
void expect_bits_of_the_reference(const std::string& dispatcher, const ScenariosOf& scenarios_of) {
  constexpr int kRanksOfHost = 2;
  for (const int domain_size : {1, kRanksOfHost}) {
    HostsJob job = make_hosts_job(2, kRanksOfHost);
    job.domain_size = domain_size;
    ReportingChildren children(host_ranks(job, [&](Group& group, ChildReport&) {
      if (group.domain_size() != domain_size) throw std::runtime_error("the group has other domains");
      const std::vector<NamedScenario> scenarios = scenarios_of(group.size(), domain_size);
      // Where domains are of one rank nothing is passed on, and no memory shared: a part of the scenarios will do.
      const std::size_t step = domain_size == 1 ? 8 : 1;
      for (std::size_t idx = 0; idx < scenarios.size(); idx += step) {
        const NamedScenario& named = scenarios[idx];
        const Mismatch mismatch = play_rank(group, dispatcher, named.scenario);
        if (mismatch) throw std::runtime_error(named.name + ": " + *mismatch);
      }
      group.barrier();
    }));
    expect_all_well(children);
  }
}

TEST(HybridOverHosts, GivesTheBitsOfTheReference) {
  if (const std::string lack = lack_of_fabric(); !lack.empty()) GTEST_SKIP() << lack;
  expect_bits_of_the_reference("hybrid", scenarios_in_domains);
}

TEST(AllToAllOverHosts, GivesTheBitsOfTheReferenceInEveryOrderOfSums) {
  if (const std::string lack = lack_of_fabric(); !lack.empty()) GTEST_SKIP() << lack;
  expect_bits_of_the_reference("alltoall", [](int num_ranks, int domain_size) {
    std::vector<NamedScenario> scenarios;
    for (const NamedScenario& named : named_scenarios()) {
      scenarios.push_back({named.name, with_ranks(named.scenario, num_ranks)});
      scenarios.back().scenario.domain_size = domain_size;
    }
    const std::vector<NamedScenario> by_domain = scenarios_in_domains(num_ranks, domain_size);
    for (std::size_t idx = 0; idx < by_domain.size(); idx += 8) scenarios.push_back(by_domain[idx]);
    return scenarios;
  });
}

// ---- Bytes ----------------------------------------------------------------------------------------------------------

void demand(bool condition, const char* what) {
  if (!condition) throw std::runtime_error(what);
}

/// Of all ranks.
std::int64_t sum_of_all(Group& group, std::int64_t own) {
  std::vector<std::int64_t> all(static_cast<std::size_t>(group.size()));
  group.all_gather(&own, sizeof(own), all.data());
  return std::accumulate(all.begin(), all.end(), std::int64_t{0});
}

/// What the links have counted is what the layout says: of this rank's headers and rows, and of all ranks' sums.
void check_network_bytes(Group& group, const std::string& name, const Layout& layout) {
  constexpr std::int64_t kTokens = 48;
  constexpr std::int64_t kHidden = 256;
  DispatcherConfig config{.hidden = kHidden, .num_experts = 16, .top_k = 6, .max_tokens = kTokens, .layout = layout};
  config.wire = Fp8Blocks{};
  const RoutingTable table = generate_routing(
      {.kind = RoutingKind::kUniform},
      {.num_tokens = kTokens, .num_experts = 16, .top_k = 6, .rank = group.rank(), .num_ranks = group.size()});
  Dispatcher dispatcher(group, name, config);
  const Handle handle = dispatcher.prepare({.expert_ids = table.ids(), .weights = table.probs()});
  const WireBytes wire = dispatcher.wire_bytes(handle);
  demand(wire.header_bytes > 0 && dispatcher.network_bytes() == wire.header_bytes, "headers");
  std::vector<std::uint16_t> tokens(static_cast<std::size_t>(kTokens * kHidden));
  const Received received =
      dispatcher.dispatch({.handle = handle, .tokens = {tokens.data(), kTokens, kHidden, DType::kBf16}});
  const std::int64_t after_dispatch = dispatcher.network_bytes();
  demand(wire.dispatch_links.network > 0, "rows cross");
  demand(after_dispatch == wire.header_bytes + wire.dispatch_links.network, "rows");
  dispatcher.combine({.received = received, .out = {tokens.data(), kTokens, kHidden, DType::kBf16}});
  demand(
      sum_of_all(group, dispatcher.network_bytes() - after_dispatch) == sum_of_all(group, wire.combine_links.network),
      "sums");
}

TEST(DispatchersOverHosts, PutOnTheNetworkWhatTheLayoutPredicts) {
  if (const std::string lack = lack_of_fabric(); !lack.empty()) GTEST_SKIP() << lack;
  ReportingChildren children(host_ranks(make_hosts_job(2, 2), [](Group& group, ChildReport&) {
    for (const char* const name : {"hybrid", "alltoall"}) {
      for (const Layout& layout : {Layout(TokenMajor{}), Layout(ExpertMajor{.alignment = 4})}) {
        check_network_bytes(group, name, layout);
      }
    }
    group.barrier();
  }));
  expect_all_well(children);
}

TEST(DomainsOverHosts, AreThoseOfTheHostsUnlessDeclared) {
  ReportingChildren children(host_ranks(make_hosts_job(2, 2), [](Group& group, ChildReport&) {
    if (group.domain_size() != 2) throw std::runtime_error("domains of " + std::to_string(group.domain_size()));
    group.barrier();  // the first to leave must not be taken for lost
  }));
  expect_all_well(children);
}

}  // namespace
}  // namespace epistle::testing
