// Dispatchers on GPUs of several hosts, which are played by processes with host keys of their own: rows of `hybrid` go
// by libfabric on loopback, those of `alltoall` by NCCL. A program of its own: see tests/cuda_processes.
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/cuda.hpp"
#include "epistle/dispatcher.hpp"
#include "epistle/routing.hpp"

#include "core/settings.hpp"
#include "cuda_hosts/gpu_hosts.hpp"
#include "support/named_scenarios.hpp"

namespace epistle::testing {
namespace {

struct HostsShape {
  int ranks_per_host;
  int domain_size;
};

class CudaHybridOverHosts : public ::testing::TestWithParam<HostsShape> {};

TEST_P(CudaHybridOverHosts, GivesTheBitsOfTheReference) {
  const HostsShape shape = GetParam();
  if (const std::string lack = lack_of_gpu_hosts("hybrid", shape.ranks_per_host); !lack.empty()) GTEST_SKIP() << lack;
  HostsJob job = make_hosts_job(kHosts, shape.ranks_per_host);
  job.domain_size = shape.domain_size;
  expect_well_on_gpus(job, shape.ranks_per_host, [&](Group& group, ChildReport&) {
    play_scenarios(group, "hybrid", scenarios_in_domains(group.size(), shape.domain_size));
  });
}

INSTANTIATE_TEST_SUITE_P(All, CudaHybridOverHosts,
                         ::testing::Values(HostsShape{1, 1}, HostsShape{2, 2}, HostsShape{2, 1}),
                         [](const auto& shape) {
                           return std::to_string(shape.param.ranks_per_host) + "RanksPerHostInDomainsOf" +
                                  std::to_string(shape.param.domain_size);
                         });

/// Makes a small dispatcher, and gives what it says of its links.
std::string links_of_hybrid(Group& group) {
  const Dispatcher dispatcher(group, "hybrid", {.hidden = 64, .num_experts = 8, .top_k = 2, .max_tokens = 4},
                              CudaOptions{});
  const std::string text = dispatcher.describe_tuning(4);
  return text.substr(text.find("links: "));
}

void set_gpu_memory(const char* choice) {
  ::setenv("EPISTLE_FABRIC_GPU_MEMORY", choice, 1);
  reload_settings_for_testing();
}

TEST(CudaHybridOverHostsGpuMemory, IsRegisteredOrStagedAndItSaysWhich) {
  if (const std::string lack = lack_of_gpu_hosts("hybrid", 1); !lack.empty()) GTEST_SKIP() << lack;
  expect_well_on_gpus(make_hosts_job(kHosts, 1), 1, [](Group& group, ChildReport&) {
    const auto demand = [](bool holds, const std::string& text) {
      if (!holds) throw std::runtime_error(text);
    };
    const std::string found = links_of_hybrid(group);
    const bool is_registered = found.find("rows from registered GPU memory") != std::string::npos;
    demand(is_registered || found.find("rows staged in pinned host memory (rank 0: ") != std::string::npos, found);
    set_gpu_memory("staged");
    const std::string staged = links_of_hybrid(group);
    demand(staged.find("(rank 0: EPISTLE_FABRIC_GPU_MEMORY is staged)") != std::string::npos, staged);
    set_gpu_memory("direct");
    try {
      demand(links_of_hybrid(group) == found && is_registered, "it was made without registered memory");
    } catch (const Error& error) {
      demand(!is_registered && error.code() == ErrorCode::kUnsupported, error.what());
    }
  });
}

class CudaAllToAllOverHosts : public ::testing::TestWithParam<int> {};

TEST_P(CudaAllToAllOverHosts, GivesTheBitsOfTheReference) {
  const int ranks_per_host = GetParam();
  if (const std::string lack = lack_of_gpu_hosts("alltoall", ranks_per_host); !lack.empty()) {
    GTEST_SKIP() << lack;
  }
  expect_well_on_gpus(make_hosts_job(kHosts, ranks_per_host), ranks_per_host, [&](Group& group, ChildReport&) {
    play_scenarios(group, "alltoall", scenarios_of_ranks(group.size(), group.domain_size()));
  });
}

INSTANTIATE_TEST_SUITE_P(All, CudaAllToAllOverHosts, ::testing::Values(1, 2),
                         [](const auto& param) { return std::to_string(param.param) + "RanksPerHost"; });

TEST(CudaOverHosts, RefuseWhatReachesIntoTheMemoryOfEveryRankAndTheGroupGoesOn) {
  if (const std::string lack = lack_of_gpu_hosts("direct", 1); !lack.empty()) GTEST_SKIP() << lack;
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
  if (const std::string lack = lack_of_gpu_hosts("hybrid", 2); !lack.empty()) GTEST_SKIP() << lack;
  expect_well_on_gpus(make_hosts_job(kHosts, 2), 2, [](Group& group, ChildReport&) {
    for (const Layout& layout : {Layout(TokenMajor{}), Layout(ExpertMajor{.alignment = 4})}) {
      check_bytes(group, layout);
    }
  });
}

}  // namespace
}  // namespace epistle::testing
