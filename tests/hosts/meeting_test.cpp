// How ranks of several hosts come together: who is missing, who does not belong, and strangers.
#include <csignal>
#include <string>
#include <thread>

#include <gtest/gtest.h>

#include "group/net/address.hpp"
#include "group/net/stream.hpp"
#include "hosts/host_ranks.hpp"

namespace epistle::testing {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kShort{700};
constexpr milliseconds kSlack{3000};

void pass_one_barrier(Group& group, ChildReport& /*report*/) { group.barrier(); }

void expect_message(const ChildReport& report, ErrorCode code, int peer_rank, const std::string& part) {
  EXPECT_TRUE(report.threw);
  EXPECT_EQ(report.code, code) << report.message;
  EXPECT_EQ(report.peer_rank, peer_rank) << report.message;
  EXPECT_EQ(report.phase, Phase::kRendezvous) << report.message;
  EXPECT_NE(std::string(report.message).find(part), std::string::npos) << report.message;
}

TEST(MeetingOverHosts, MissingRankIsNamedByAllThatCame) {
  HostsJob job = make_hosts_job(2, 2);
  job.timeout = kShort;
  ReportingChildren children(
      {host_rank(job, 0, pass_one_barrier), host_rank(job, 1, pass_one_barrier), host_rank(job, 3, pass_one_barrier)});
  for (std::size_t idx = 0; idx < children.size(); ++idx) {
    ASSERT_EQ(children.wait(idx), 0);
    expect_message(children.report(idx), ErrorCode::kTimeout, 2, "rank 2 did not join the group within 700 ms");
    EXPECT_LT(children.report(idx).took_ms, (kShort + kSlack).count());
  }
}

TEST(MeetingOverHosts, MissingRootIsNamed) {
  HostsJob job = make_hosts_job(2, 1);
  job.timeout = kShort;
  ReportingChildren children({host_rank(job, 1, pass_one_barrier)});
  ASSERT_EQ(children.wait(0), 0);
  expect_message(children.report(0), ErrorCode::kTimeout, 0, "rank 0 was not found at 127.0.0.1:");
}

TEST(MeetingOverHosts, AnotherGroupSizeIsRefused) {
  const HostsJob job = make_hosts_job(2, 1);
  HostsJob other = job;
  other.host_of = {0, 1, 1};
  ReportingChildren children({host_rank(job, 0, pass_one_barrier), host_rank(other, 1, pass_one_barrier)});
  for (std::size_t idx = 0; idx < children.size(); ++idx) ASSERT_EQ(children.wait(idx), 0);
  expect_message(children.report(0), ErrorCode::kShapeMismatch, 1, "rank 1 came with 3 ranks");
  EXPECT_EQ(children.report(1).code, ErrorCode::kShapeMismatch) << children.report(1).message;
}

TEST(MeetingOverHosts, AnotherSecretIsRefusedAndSaysSo) {
  HostsJob job = make_hosts_job(2, 1);
  job.timeout = kShort;
  ReportingChildren children(
      {host_rank(job, 0, pass_one_barrier, "right"), host_rank(job, 1, pass_one_barrier, "wrong")});
  for (std::size_t idx = 0; idx < children.size(); ++idx) ASSERT_EQ(children.wait(idx), 0);
  expect_message(children.report(0), ErrorCode::kTimeout, 1, "1 of 2 ranks joined");
  expect_message(children.report(1), ErrorCode::kTimeout, 0, "does not know this job's secret");
}

TEST(MeetingOverHosts, EqualSecretsMeet) {
  const HostsJob job = make_hosts_job(2, 1);
  ReportingChildren children(
      {host_rank(job, 0, pass_one_barrier, "same"), host_rank(job, 1, pass_one_barrier, "same")});
  expect_all_well(children);
}

TEST(MeetingOverHosts, PortOfAnotherProgramIsPassedOver) {
  const HostsJob job = make_hosts_job(2, 1);
  // It is there before anybody of the job, takes connections, and says nothing.
  const UniqueFd stranger = listen_at(resolve(parse_host_and_port(job.address)));
  HostsJob patient = job;
  patient.timeout = milliseconds(30'000);
  ReportingChildren children(host_ranks(patient, pass_one_barrier));
  expect_all_well(children);
}

TEST(MeetingOverHosts, PortThatOnlyOthersListenAtIsNamed) {
  HostsJob job = make_hosts_job(2, 1);
  job.timeout = kShort;
  const UniqueFd stranger = listen_at(resolve(parse_host_and_port(job.address)));
  ReportingChildren children({host_rank(job, 1, pass_one_barrier)});
  ASSERT_EQ(children.wait(0), 0);
  expect_message(children.report(0), ErrorCode::kTimeout, 0, "does not answer as rank 0 does");
}

TEST(MeetingOverHosts, StrangersChangeNothing) {
  const HostsJob job = make_hosts_job(2, 2);
  std::vector<ReportingChildren::Body> bodies = host_ranks(job, [](Group& group, ChildReport& report) {
    for (int round = 0; round < 300; ++round) {
      group.barrier();
      report.progress = round;
      std::this_thread::sleep_for(milliseconds(1));
    }
  });
  // Garbage, half a greeting and silence, from before the first rank comes until all are through.
  bodies.emplace_back([address = job.address](ChildReport&) {
    std::vector<UniqueFd> silent;
    for (int visit = 0; visit < 400; ++visit) {
      const Deadline soon = std::chrono::steady_clock::now() + milliseconds(100);
      UniqueFd socket = connect_to(resolve(parse_host_and_port(address)), soon);
      if (socket.valid() && visit % 3 != 2) {
        (void)send_bytes(socket.get(), std::string(visit % 3 == 0 ? 5000 : 7, static_cast<char>(visit)), soon);
      }
      if (visit % 4 == 0) silent.push_back(std::move(socket));
      std::this_thread::sleep_for(milliseconds(1));
    }
  });
  ReportingChildren children(bodies);
  expect_all_well(children);
}

}  // namespace
}  // namespace epistle::testing
