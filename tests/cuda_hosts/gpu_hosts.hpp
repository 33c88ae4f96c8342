// Hosts with GPUs, played by processes with host keys of their own.
#pragma once

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "epistle/cuda.hpp"
#include "epistle/dispatcher.hpp"

#include "hosts/host_ranks.hpp"
#include "support/cuda_devices.hpp"
#include "support/cuda_play.hpp"
#include "support/named_scenarios.hpp"

namespace epistle::testing {

inline constexpr int kHosts = 2;
inline constexpr std::chrono::seconds kLongestRun{120};

/// Every host with GPUs of its own where there are enough, else all with the same ones. Before CUDA starts. NCCL must
/// take for hosts what plays them: it would refuse a GPU that two ranks of one host have, and pass by the network.
inline void take_gpus(const Group& group, int ranks_per_host) {
  std::string visible;
  const bool has_own = missing_gpu_nodes(group.size()).empty();
  const int first = has_own ? group.rank() / ranks_per_host * ranks_per_host : 0;
  for (int idx = 0; idx < ranks_per_host; ++idx) {
    visible += (idx > 0 ? "," : "") + std::to_string(first + idx);
  }
  ::setenv("CUDA_VISIBLE_DEVICES", visible.c_str(), 1);
  ::setenv("NCCL_HOSTID", std::getenv("EPISTLE_HOST_ID"), 1);
  ::setenv("NCCL_SOCKET_IFNAME", "lo", 0);
  ::setenv("NCCL_IB_DISABLE", "1", 0);
}

inline void expect_well_on_gpus(HostsJob job, int ranks_per_host, const HostsBody& body) {
  job.timeout = kCudaTimeout;
  ReportingChildren children(host_ranks(job, [&](Group& group, ChildReport& report) {
    take_gpus(group, ranks_per_host);
    body(group, report);
    group.barrier();  // the first to leave must not be taken for lost
  }));
  expect_all_well(children, kLongestRun);
}

inline std::string lack_of_gpu_hosts(const char* dispatcher, int num_gpus) {
  if (const std::string reason = missing_gpu_nodes(num_gpus); !reason.empty()) return reason;
  if (const auto reason = missing_from_build(dispatcher); !reason.empty()) return std::string(reason);
  return lack_of_fabric();
}

inline void play_scenarios(Group& group, const std::string& dispatcher, const std::vector<NamedScenario>& scenarios) {
  int num_played = 0;
  for (const NamedScenario& named : scenarios) {
    if (!cannot_play(dispatcher, named.scenario).empty()) continue;
    const auto begin = std::chrono::steady_clock::now();
    const Mismatch mismatch = play_rank(group, dispatcher, named.scenario, on_cuda());
    if (mismatch) throw std::runtime_error(named.name + ": " + *mismatch);
    ++num_played;
    if (group.rank() != 0) continue;
    const auto took = std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - begin);
    // A run that is cut off says how far it came.
    std::cout << "  " << num_played << ' ' << named.name << ": " << took.count() << " ms" << std::endl;
  }
  if (num_played == 0) throw std::runtime_error("no scenario was played");
}

/// The scenarios that every dispatcher plays, with as many ranks as the group has.
inline std::vector<NamedScenario> scenarios_of_ranks(int num_ranks, int domain_size = 0) {
  std::vector<NamedScenario> scenarios;
  for (const NamedScenario& named : named_scenarios()) {
    scenarios.push_back({named.name, with_ranks(named.scenario, num_ranks)});
    scenarios.back().scenario.domain_size = domain_size;
  }
  return scenarios;
}

}  // namespace epistle::testing
