// Ranks of several hosts that are played on this one: processes with host keys of their own, which meet on loopback.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "epistle/group.hpp"

#include "multiprocess/reporting_children.hpp"

namespace epistle::testing {

struct HostsJob {
  std::string name;
  std::string address;            ///< a port of loopback that nobody listens at
  std::vector<int> host_of = {};  ///< by rank
  std::chrono::milliseconds timeout{20'000};
  int domain_size = 0;                           ///< declared
  std::vector<std::string> fabric_of_host = {};  ///< NVLink fabrics; empty = none

  [[nodiscard]] int num_ranks() const noexcept { return static_cast<int>(host_of.size()); }
};

/// `ranks_per_host` ranks in a row on each of `num_hosts` hosts.
[[nodiscard]] HostsJob make_hosts_job(int num_hosts, int ranks_per_host);

using HostsBody = std::function<void(Group& group, ChildReport& report)>;

/// A child that plays `rank`: joins and runs `body`. `secret` empty: the job's name.
[[nodiscard]] ReportingChildren::Body host_rank(const HostsJob& job, int rank, HostsBody body,
                                                const std::string& secret = {});
[[nodiscard]] std::vector<ReportingChildren::Body> host_ranks(const HostsJob& job, const HostsBody& body);

/// What this machine has not that links between hosts need; empty where it has.
[[nodiscard]] std::string lack_of_fabric();

/// Waits for every child, each as long as that, and expects that it has come to its end without an error.
void expect_all_well(ReportingChildren& children, std::chrono::milliseconds limit = std::chrono::seconds(60));

/// Expects of all children but `victim` the same typed error, which names `peer_rank`, within `limit`.
void expect_same_error(ReportingChildren& children, int victim, ErrorCode code, int peer_rank,
                       std::chrono::milliseconds limit);

}  // namespace epistle::testing
