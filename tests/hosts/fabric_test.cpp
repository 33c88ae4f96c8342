// Which GPUs of several hosts form a domain: those of hosts in one NVLink fabric.
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"
#include "epistle/group.hpp"

#include "hosts/host_ranks.hpp"

namespace epistle::testing {
namespace {

struct FabricShape {
  std::string name;
  int ranks_per_host;
  std::vector<std::string> fabrics;  ///< by host
  int declared;
  int domain_size;
  int gpu_domain_size;
};

class HostsInFabrics : public ::testing::TestWithParam<FabricShape> {};

TEST_P(HostsInFabrics, GpusOfOneFabricFormADomainAndHostMemoryKeepsToHosts) {
  const FabricShape& shape = GetParam();
  HostsJob job = make_hosts_job(static_cast<int>(shape.fabrics.size()), shape.ranks_per_host);
  job.fabric_of_host = shape.fabrics;
  job.domain_size = shape.declared;
  ReportingChildren children(host_ranks(job, [&shape](Group& group, ChildReport&) {
    if (group.domain_size() != shape.domain_size || group.gpu_domain_size() != shape.gpu_domain_size) {
      throw std::runtime_error("domains of " + std::to_string(group.domain_size()) + ", of GPUs " +
                               std::to_string(group.gpu_domain_size()));
    }
    group.barrier();
  }));
  expect_all_well(children);
}

INSTANTIATE_TEST_SUITE_P(Shapes, HostsInFabrics,
                         ::testing::Values(FabricShape{"AllInOne", 2, {"rack", "rack"}, 0, 2, 4},
                                           FabricShape{"TwoOfTwo", 1, {"a", "a", "b", "b"}, 0, 1, 2},
                                           FabricShape{"OneHostIsInNone", 1, {"a", "a", "none"}, 0, 1, 1},
                                           FabricShape{"EachInItsOwn", 2, {"a", "b"}, 0, 2, 2},
                                           FabricShape{"DeclaredOverHosts", 2, {"rack", "rack"}, 4, 2, 4},
                                           FabricShape{"DeclaredWithinHosts", 2, {"rack", "rack"}, 1, 1, 1}),
                         [](const auto& shape) { return shape.param.name; });

void expect_refused(const HostsJob& job, const std::vector<std::string>& parts) {
  ReportingChildren children(host_ranks(job, [](Group&, ChildReport&) {}));
  for (std::size_t idx = 0; idx < children.size(); ++idx) {
    ASSERT_EQ(children.wait(idx), 0);
    ASSERT_TRUE(children.report(idx).threw);
    const std::string message = children.report(idx).message;
    for (const std::string& part : parts) EXPECT_NE(message.find(part), std::string::npos) << message;
  }
}

TEST(HostsInFabricsRefusals, DeclaredDomainsThatNoFabricJoinsNameWhatWasFound) {
  HostsJob job = make_hosts_job(2, 2);
  job.domain_size = 4;
  expect_refused(job, {"domains of 4 ranks", "on 2 hosts", "rank 2 is on another host than rank 0"});
}

TEST(HostsInFabricsRefusals, DeclaredDomainsOverTwoFabricsNameThem) {
  HostsJob job = make_hosts_job(4, 1);
  job.fabric_of_host = {"a", "a", "b", "b"};
  job.domain_size = 4;
  expect_refused(job, {"rank 2 is in no NVLink fabric with the host of rank 0", "declare one of 1, 2"});
}

TEST(HostsInFabricsRefusals, DispatchersOfTheHostThatNeedSharedMemoryStayRefused) {
  HostsJob job = make_hosts_job(2, 1);
  job.fabric_of_host = {"rack", "rack"};
  ReportingChildren children(host_ranks(job, [](Group& group, ChildReport&) {
    try {
      const Dispatcher dispatcher(group, "direct", {.hidden = 64, .num_experts = 8, .top_k = 2, .max_tokens = 4});
      throw std::runtime_error("direct was made");
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kUnsupported) throw;
    }
    group.barrier();
  }));
  expect_all_well(children);
}

}  // namespace
}  // namespace epistle::testing
