// Which rank is on which host, as all ranks have found together.
#pragma once

#include <string>
#include <vector>

#include "group/descriptor.hpp"
#include "group/net/gathering.hpp"
#include "group/process_world.hpp"

namespace epistle {

struct HostEntry {
  std::string name;        ///< for people
  std::string key;         ///< differs from host to host
  std::string reach;       ///< of its ranks: they can meet where it is the same
  std::vector<int> ranks;  ///< in ascending order; the first leads
  std::string address;     ///< where its leader listens; empty where there is one host only
  std::string fabric;      ///< NVLink fabric that its GPUs are in; empty where it is alone
};

struct HostTable {
  std::vector<HostEntry> hosts;  ///< in the order of their leaders
  std::vector<int> host_of;      ///< by rank
  std::string job;
  std::string secret;

  [[nodiscard]] int num_hosts() const noexcept { return static_cast<int>(hosts.size()); }
  [[nodiscard]] int leader_of(int rank) const noexcept;
  /// The first host in whose fabric the GPU of `rank` is.
  [[nodiscard]] int gpu_reach_of(int rank) const noexcept;
  /// Those of the host of `rank`, which asks.
  [[nodiscard]] HostRanks ranks_beside(int rank) const;
  /// "2 ranks on node1 (0, 1), 2 on node2 (2, 3)".
  [[nodiscard]] std::string describe() const;
};

/// What a rank of a group that may span hosts needs to know in advance. Where job and secret are empty, rank 0 makes
/// them up and they travel with what is gathered.
struct HostMeeting {
  int rank = 0;
  int num_ranks = 1;
  std::string job;
  std::string secret;
};

struct MetHosts {
  HostTable table;
  UniqueFd listener;  ///< of a leader, where there are several hosts
};

/// Collective. Throws the same on all ranks.
[[nodiscard]] MetHosts meet_hosts(Gathering& gathering, const HostMeeting& meeting);

/// What tells this host from others: ranks of one key reach each other's memory. The setting EPISTLE_HOST_ID, or the
/// boot and the network namespace, in which the ranks of a host meet.
[[nodiscard]] std::string own_host_key();

}  // namespace epistle
