// Dispatchers on GPUs of several hosts, which are played by processes with host keys of their own: rows of `hybrid` go
// by libfabric on loopback, those of `alltoall` by NCCL. A program of its own: see tests/cuda_processes.
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/cuda.hpp"
#include "epistle/dispatcher.hpp"
#include "epistle/routing.hpp"

#include "hosts/host_ranks.hpp"
#include "support/cuda_devices.hpp"
#include "support/cuda_play.hpp"
#include "support/named_scenarios.hpp"

namespace epistle::testing {
namespace {

constexpr int kHosts = 2;
constexpr std::chrono::seconds kLongestRun{120};

/// Every host with GPUs of its own where there are enough, else all with the same ones. Before CUDA starts. NCCL must
/// take for hosts what plays them: it would refuse a GPU that two ranks of one host have, and pass by the network.
void take_gpus(const Group& group, int ranks_per_host) {
  std::string visible;
  const bool has_own = missing_gpu_nodes(kHosts * ranks_per_host).empty();
  const int first = has_own ? group.rank() / ranks_per_host * ranks_per_host : 0;
  for (int idx = 0; idx < ranks_per_host; ++idx) {
    visible += (idx > 0 ? "," : "") + std::to_string(first + idx);
  }
  ::setenv("CUDA_VISIBLE_DEVICES", visible.c_str(), 1);
  ::setenv("NCCL_HOSTID", std::getenv("EPISTLE_HOST_ID"), 1);
  ::setenv("NCCL_SOCKET_IFNAME", "lo", 0);
  ::setenv("NCCL_IB_DISABLE", "1", 0);
}

void expect_well_on_gpus(HostsJob job, int ranks_per_host, const HostsBody& body) {
  job.timeout = kCudaTimeout;
  ReportingChildren children(host_ranks(job, [&](Group& group, ChildReport& report) {
    take_gpus(group, ranks_per_host);
    body(group, report);
    group.barrier();  // the first to leave must not be taken for lost
  }));
  for (std::size_t idx = 0; idx < children.size(); ++idx) (void)children.wait(idx, kLongestRun);
  expect_all_well(children);
}

std::string lack_of_hosts(const char* dispatcher, int num_gpus) {
  if (const std::string reason = missing_gpu_nodes(num_gpus); !reason.empty()) return reason;
  if (const auto reason = missing_from_build(dispatcher); !reason.empty()) return std::string(reason);
  return lack_of_fabric();
}

void play(Group& group, const std::string& dispatcher, const std::vector<NamedScenario>& scenarios) {
  int num_played = 0;
  for (const NamedScenario& named : scenarios) {
    if (!cannot_play(dispatcher, named.scenario).empty()) continue;
    const Mismatch mismatch = play_rank(group, dispatcher, named.scenario, on_cuda());
    if (mismatch) throw std::runtime_error(named.name + ": " + *mismatch);
    ++num_played;
  }
  if (num_played == 0) throw std::runtime_error("no scenario was played");
}

struct HostsShape {
  int ranks_per_host;
  int domain_size;
};

class CudaHybridOverHosts : public ::testing::TestWithParam<HostsShape> {};

TEST_P(CudaHybridOverHosts, GivesTheBitsOfTheReference) {
  const HostsShape shape = GetParam();
  if (const std::string lack = lack_of_hosts("hybrid", shape.ranks_per_host); !lack.empty()) GTEST_SKIP() << lack;
  HostsJob job = make_hosts_job(kHosts, shape.ranks_per_host);
  job.domain_size = shape.domain_size;
  expect_well_on_gpus(job, shape.ranks_per_host, [&](Group& group, ChildReport&) {
    play(group, "hybrid", scenarios_in_domains(group.size(), shape.domain_size));
  });
}

INSTANTIATE_TEST_SUITE_P(All, CudaHybridOverHosts,
                         ::testing::Values(HostsShape{1, 1}, HostsShape{2, 2}, HostsShape{2, 1}),
                         [](const auto& shape) {
                           return std::to_string(shape.param.ranks_per_host) + "RanksPerHostInDomainsOf" +
                                  std::to_string(shape.param.domain_size);
                         });

class CudaAllToAllOverHosts : public ::testing::TestWithParam<int> {};

TEST_P(CudaAllToAllOverHosts, GivesTheBitsOfTheReference) {
  const int ranks_per_host = GetParam();
  if (const std::string lack = lack_of_hosts("alltoall", ranks_per_host); !lack.empty()) {
    GTEST_SKIP() << lack;
  }
  expect_well_on_gpus(make_hosts_job(kHosts, ranks_per_host), ranks_per_host, [&](Group& group, ChildReport&) {
    std::vector<NamedScenario> scenarios;
    for (const NamedScenario& named : named_scenarios()) {
      scenarios.push_back({named.name, with_ranks(named.scenario, group.size())});
      scenarios.back().scenario.domain_size = group.domain_size();
    }
    play(group, "alltoall", scenarios);
  });
}

INSTANTIATE_TEST_SUITE_P(All, CudaAllToAllOverHosts, ::testing::Values(1, 2),
                         [](const auto& param) { return std::to_string(param.param) + "RanksPerHost"; });

TEST(CudaOverHosts, RefuseWhatReachesIntoTheMemoryOfEveryRankAndTheGroupGoesOn) {
  if (const std::string lack = lack_of_hosts("direct", 1); !lack.empty()) GTEST_SKIP() << lack;
  expect_well_on_gpus(make_hosts_job(kHosts, 1), 1, [](Group& group, ChildReport&) {
    for (const char* const name : {"direct", "low_latency", "auto"}) {
      try {
        const Dispatcher dispatcher(group, name, {.hidden = 64, .num_experts = 8, .top_k = 2, .max_tokens = 4},
                                    CudaOptions{});
        throw std::runtime_error(std::string(name) + " was made");
      } catch (const Error& error) {
        const std::string text = error.what();
        if (error.code() != ErrorCode::kUnsupported || text.find("on 2 hosts") == std::string::npos) throw;
      }
    }
  });
}

/// What the links have counted is what the layout says: headers of prepare, and rows.
void check_bytes(Group& group, const Layout& layout) {
  constexpr std::int64_t kTokens = 48;
  constexpr std::int64_t kHidden = 256;
  constexpr std::int32_t kTopK = 6;
  const DispatcherConfig config{
      .hidden = kHidden, .num_experts = 16, .top_k = kTopK, .max_tokens = kTokens, .layout = layout};
  const RoutingTable table = generate_routing(
      {.kind = RoutingKind::kUniform},
      {.num_tokens = kTokens, .num_experts = 16, .top_k = kTopK, .rank = group.rank(), .num_ranks = group.size()});
  Dispatcher dispatcher(group, "hybrid", config, CudaOptions{});
  DeviceArena arena(dispatcher.device_ordinal(), DeviceArena::kDefaultBytes);
  arena.activate();
  IdsView ids = table.ids();
  const std::int64_t id_bytes = ids.type == IdType::kInt64 ? 8 : 4;
  ids.data = arena.copy_in(ids.data, kTokens * kTopK * id_bytes);
  WeightsView weights = table.probs();
  weights.data = reinterpret_cast<const float*>(arena.copy_in(weights.data, kTokens * kTopK * 4));
  const std::vector<std::uint16_t> rows(static_cast<std::size_t>(kTokens * kHidden));
  const void* const tokens = arena.copy_in(rows.data(), kTokens * kHidden * 2);
  const Handle handle = dispatcher.prepare({.expert_ids = ids, .weights = weights}, arena.stream());
  const WireBytes wire = dispatcher.wire_bytes(handle);
  const auto demand = [](bool holds, const char* what) {
    if (!holds) throw std::runtime_error(what);
  };
  demand(wire.header_bytes > 0 && dispatcher.network_bytes() == wire.header_bytes, "headers");
  const Received received =
      dispatcher.dispatch({.handle = handle, .tokens = {tokens, kTokens, kHidden, DType::kBf16}}, arena.stream());
  demand(wire.dispatch_links.network > 0, "rows cross");
  demand(dispatcher.network_bytes() == wire.header_bytes + wire.dispatch_links.network, "rows");
  dispatcher.wait();
}

TEST(CudaHybridOverHostsBytes, AreWhatTheLayoutPredicts) {
  if (const std::string lack = lack_of_hosts("hybrid", 2); !lack.empty()) GTEST_SKIP() << lack;
  expect_well_on_gpus(make_hosts_job(kHosts, 2), 2, [](Group& group, ChildReport&) {
    for (const Layout& layout : {Layout(TokenMajor{}), Layout(ExpertMajor{.alignment = 4})}) {
      check_bytes(group, layout);
    }
  });
}

}  // namespace
}  // namespace epistle::testing
