#include "hosts/host_ranks.hpp"

#include <cstdlib>

#include <gtest/gtest.h>

#include "core/settings.hpp"
#include "fabric/fabric.hpp"
#include "group/net/address.hpp"
#include "group/net/stream.hpp"
#include "support/process_ranks.hpp"

namespace epistle::testing {

HostsJob make_hosts_job(int num_hosts, int ranks_per_host) {
  HostsJob job{.name = unique_job(), .address = {}};
  // Free a moment ago; whoever takes it meanwhile is passed over, as 15 more are tried.
  const UniqueFd probe = listen_at(resolve({"127.0.0.1", 1}).with_port(0));
  job.address = own_address(probe.get()).to_text();
  for (int rank = 0; rank < num_hosts * ranks_per_host; ++rank) job.host_of.push_back(rank / ranks_per_host);
  return job;
}

ReportingChildren::Body host_rank(const HostsJob& job, int rank, HostsBody body, const std::string& secret) {
  return [job, rank, body = std::move(body), secret](ChildReport& report) {
    const std::string host = "host " + std::to_string(job.host_of[static_cast<std::size_t>(rank)]);
    ::setenv("EPISTLE_HOST_ID", host.c_str(), 1);
    const auto idx = static_cast<std::size_t>(job.host_of[static_cast<std::size_t>(rank)]);
    ::setenv("EPISTLE_NVLINK_FABRIC", job.fabric_of_host.empty() ? "none" : job.fabric_of_host[idx].c_str(), 1);
    if (!secret.empty()) ::setenv("EPISTLE_JOB_SECRET", secret.c_str(), 1);
    reload_settings_for_testing();
    Group group =
        join_process_group({.rank = rank, .num_ranks = job.num_ranks(), .job = job.name, .address = job.address},
                           {.timeout = job.timeout, .domain_size = job.domain_size});
    body(group, report);
  };
}

std::vector<ReportingChildren::Body> host_ranks(const HostsJob& job, const HostsBody& body) {
  std::vector<ReportingChildren::Body> bodies;
  for (int rank = 0; rank < job.num_ranks(); ++rank) bodies.push_back(host_rank(job, rank, body));
  return bodies;
}

std::string lack_of_fabric() {
  // Asked in a child, as providers start threads.
  static const bool has = [] {
    ReportingChildren child({[](ChildReport&) { (void)choose_fabric_way({.provider = "tcp"}); }});
    return child.wait(0) == 0 && !child.report(0).threw;
  }();
  return has ? "" : "libfabric's provider tcp is not there: install libfabric-dev and libfabric1";
}

void expect_all_well(ReportingChildren& children, std::chrono::milliseconds limit) {
  for (std::size_t idx = 0; idx < children.size(); ++idx) {
    EXPECT_EQ(children.wait(idx, limit), 0) << "rank " << idx;
    EXPECT_FALSE(children.report(idx).threw) << "rank " << idx << ": " << children.report(idx).message;
    EXPECT_TRUE(children.report(idx).returned) << "rank " << idx;
    EXPECT_FALSE(children.report(idx).has_shared_memory) << "rank " << idx;
  }
}

void expect_same_error(ReportingChildren& children, int victim, ErrorCode code, int peer_rank,
                       std::chrono::milliseconds limit) {
  for (std::size_t idx = 0; idx < children.size(); ++idx) {
    if (static_cast<int>(idx) == victim) continue;
    SCOPED_TRACE("rank " + std::to_string(idx));
    ASSERT_EQ(children.wait(idx), 0);
    const ChildReport& report = children.report(idx);
    ASSERT_TRUE(report.threw);
    EXPECT_EQ(report.code, code) << report.message;
    EXPECT_EQ(report.peer_rank, peer_rank) << report.message;
    EXPECT_LT(report.took_ms, limit.count()) << report.message;
  }
}

}  // namespace epistle::testing
