// Groups whose ranks are processes, of one host or of several.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "epistle/error.hpp"
#include "epistle/group.hpp"

#include "core/log.hpp"
#include "core/settings.hpp"
#include "group/group_impl.hpp"
#include "group/limits.hpp"
#include "group/net/hosts_world.hpp"
#include "group/net/pmix_gathering.hpp"
#include "group/process_world.hpp"

namespace epistle {
namespace {

// Ports that rank 0 may take where another program has the first.
constexpr int kNumMeetingPorts = 16;

MeetingPlace meeting_place(const std::string& address) {
  MeetingPlace place{.where = parse_host_and_port(address), .num_ports = kNumMeetingPorts};
  // Behind the last port there is none.
  place.num_ports = std::min(place.num_ports, std::numeric_limits<std::uint16_t>::max() - place.where.port + 1);
  if (settings().network_port() == kAutomatic) return place;
  return {.where = {place.where.host, static_cast<std::uint16_t>(settings().network_port())}, .num_ports = 1};
}

/// Whoever can guess the name of a job could speak for one of its ranks.
void warn_of_guessable_secret(const HostTable& table, int rank) {
  if (rank != 0 || table.num_hosts() == 1 || !settings().job_secret().empty()) return;
  if (resolve(parse_host_and_port(table.hosts[0].address)).is_loopback()) return;
  log_warn(
      "ranks of other hosts are known by the name of the job only, which others may guess; set EPISTLE_JOB_SECRET to "
      "the same random text on all ranks");
}

void check_rank(int rank, int num_ranks) {
  if (rank >= 0 && rank < num_ranks) return;
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("rank {} is not in [0, {}), the ranks of this job", rank, num_ranks));
}

/// What a rank joins with.
struct Joining {
  int rank;
  int num_ranks;
  std::chrono::milliseconds timeout;
  int domain_size;  ///< as declared
};

Group make_group(std::shared_ptr<World> world, const Joining& joining) {
  auto impl = std::make_shared<GroupImpl>(std::move(world), joining.rank, joining.num_ranks, joining.timeout);
  impl->form_domains(joining.domain_size);
  return Group(std::move(impl));
}

Group join_one_host(const std::string& job, const Joining& joining) {
  check_num_ranks(joining.num_ranks);
  return make_group(
      std::make_shared<ProcessWorld>(job, joining.rank, all_ranks_here(joining.num_ranks), joining.timeout), joining);
}

Group join_met_hosts(MetHosts met, const Joining& joining) {
  if (met.table.num_hosts() == 1) return join_one_host(met.table.job, joining);
  return make_group(HostsWorld::meet(std::move(met), joining.rank, joining.timeout), joining);
}

}  // namespace

Group join_process_group(const GroupOptions& options) { return join_process_group(read_launch_info(), options); }

Group join_process_group(const LaunchInfo& info, const GroupOptions& options) {
  const std::chrono::milliseconds timeout = resolve_timeout(options);
  const Joining joining{
      .rank = info.rank, .num_ranks = info.num_ranks, .timeout = timeout, .domain_size = options.domain_size};
  if (info.address.empty()) {
    check_num_ranks(info.num_ranks);
    check_rank(info.rank, info.num_ranks);
    return join_one_host(info.job, joining);
  }
  check_num_ranks_of_hosts(info.num_ranks);
  check_rank(info.rank, info.num_ranks);
  if (info.address == kPmixMeeting) {
    const PmixRank rank{.rank = info.rank, .num_ranks = info.num_ranks, .timeout = timeout};
    return join_process_group(info.rank, info.num_ranks, gather_by_pmix(rank), options);
  }
  const std::string& secret = settings().job_secret().empty() ? info.job : settings().job_secret();
  std::unique_ptr<Gathering> gathering = gather_around_root(
      meeting_place(info.address), secret, {.rank = info.rank, .num_ranks = info.num_ranks, .timeout = timeout});
  MetHosts met =
      meet_hosts(*gathering, {.rank = info.rank, .num_ranks = info.num_ranks, .job = info.job, .secret = secret});
  gathering.reset();  // rank 0 has a descriptor there for every other rank
  warn_of_guessable_secret(met.table, info.rank);
  return join_met_hosts(std::move(met), joining);
}

Group join_process_group(int rank, int num_ranks, const GatherTexts& gather, const GroupOptions& options) {
  const std::chrono::milliseconds timeout = resolve_timeout(options);
  check_num_ranks_of_hosts(num_ranks);
  check_rank(rank, num_ranks);
  const std::unique_ptr<Gathering> gathering = gather_by(gather, num_ranks);
  return join_met_hosts(
      meet_hosts(*gathering, {.rank = rank, .num_ranks = num_ranks, .job = {}, .secret = settings().job_secret()}),
      {.rank = rank, .num_ranks = num_ranks, .timeout = timeout, .domain_size = options.domain_size});
}

}  // namespace epistle
