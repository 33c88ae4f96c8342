// Dispatchers on groups of several hosts: those that reach into the memory of every rank say that they cannot, and
// `hybrid` goes by the network.
#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"

#include "hosts/host_ranks.hpp"
#include "support/named_scenarios.hpp"
#include "support/player.hpp"

namespace epistle::testing {
namespace {

TEST(DispatchersOverHosts, AreRefusedOnAllRanksAndTheGroupGoesOn) {
  ReportingChildren children(host_ranks(make_hosts_job(2, 1), [](Group& group, ChildReport&) {
    for (const DispatcherInfo* info : dispatchers()) {
      if (info->device() != Device::kHost || info->capabilities().joins_domains) continue;
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

// One group for all: hosts take longer to meet than most of the scenarios.
TEST(HybridOverHosts, GivesTheBitsOfTheReference) {
  if (const std::string lack = lack_of_fabric(); !lack.empty()) GTEST_SKIP() << lack;
  constexpr int kRanksOfHost = 2;
  for (const int domain_size : {1, kRanksOfHost}) {
    HostsJob job = make_hosts_job(2, kRanksOfHost);
    job.domain_size = domain_size;
    ReportingChildren children(host_ranks(job, [&](Group& group, ChildReport&) {
      if (group.domain_size() != domain_size) throw std::runtime_error("the group has other domains");
      const std::vector<NamedScenario> scenarios = scenarios_in_domains(group.size(), domain_size);
      // Domains of one rank pass nothing on: a part of the scenarios will do.
      const std::size_t step = domain_size == 1 ? 4 : 1;
      for (std::size_t idx = 0; idx < scenarios.size(); idx += step) {
        const NamedScenario& named = scenarios[idx];
        const Mismatch mismatch = play_rank(group, "hybrid", named.scenario);
        if (mismatch) throw std::runtime_error(named.name + ": " + *mismatch);
      }
      group.barrier();
    }));
    expect_all_well(children);
  }
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
