// Dispatchers on GPUs of hosts in one NVLink fabric: memory crosses as fabric handles. Hosts are played by processes,
// and the fabric by a driver that hands file descriptors out in place of its handles.
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "core/settings.hpp"
#include "cuda_hosts/gpu_hosts.hpp"
#include "cuda_hosts/played_fabric.hpp"

namespace epistle::testing {
namespace {

HostsJob make_fabric_job(std::vector<std::string> fabrics) {
  HostsJob job = make_hosts_job(static_cast<int>(fabrics.size()), 1);
  job.fabric_of_host = std::move(fabrics);
  return job;
}

class CudaOverNvlinkFabric : public ::testing::TestWithParam<const char*> {};

TEST_P(CudaOverNvlinkFabric, GivesTheBitsOfTheReference) {
  const std::string dispatcher = GetParam();
  if (const std::string lack = lack_of_gpu_hosts(GetParam(), 1); !lack.empty()) GTEST_SKIP() << lack;
  expect_well_on_gpus(make_fabric_job({"rack", "rack"}), 1, [&](Group& group, ChildReport&) {
    play_nvlink_fabric();
    if (group.gpu_domain_size() != group.size()) throw std::runtime_error("the GPUs are not in one domain");
    play_scenarios(group, dispatcher, scenarios_of_ranks(group.size()));
  });
}

INSTANTIATE_TEST_SUITE_P(All, CudaOverNvlinkFabric, ::testing::Values("direct", "low_latency", "hybrid"),
                         [](const auto& dispatcher) { return std::string(dispatcher.param); });

TEST(CudaOverTwoNvlinkFabrics, HybridCrossesOncePerFabricWithTheBitsOfTheReference) {
  if (const std::string lack = lack_of_gpu_hosts("hybrid", 1); !lack.empty()) GTEST_SKIP() << lack;
  expect_well_on_gpus(make_fabric_job({"a", "a", "b", "b"}), 1, [](Group& group, ChildReport&) {
    play_nvlink_fabric();
    if (group.gpu_domain_size() != 2) throw std::runtime_error("the GPUs are not in domains of two");
    play_scenarios(group, "hybrid", scenarios_in_domains(group.size(), 2));
  });
}

TEST(CudaOverNvlinkFabricRefusals, NameWhatCannotCross) {
  if (const std::string lack = lack_of_gpu_hosts("direct", 1); !lack.empty()) GTEST_SKIP() << lack;
  expect_well_on_gpus(make_fabric_job({"rack", "rack"}), 1, [](Group& group, ChildReport&) {
    ::setenv("EPISTLE_CUDA_HEAP", "fd", 1);
    reload_settings_for_testing();
    try {
      const Dispatcher dispatcher(group, "direct", {.hidden = 64, .num_experts = 8, .top_k = 2, .max_tokens = 4},
                                  CudaOptions{});
      throw std::runtime_error("direct was made");
    } catch (const Error& error) {
      const std::string text = error.what();
      if (error.code() != ErrorCode::kUnsupported || text.find("travels as fabric handles") == std::string::npos) throw;
    }
  });
}

}  // namespace
}  // namespace epistle::testing
