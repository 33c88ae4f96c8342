#include "group/net/hosts_world.hpp"

#include <cerrno>
#include <cstring>
#include <utility>

#include <sys/eventfd.h>
#include <unistd.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "group/net/host_links.hpp"

namespace epistle {
namespace {

using Clock = std::chrono::steady_clock;

std::string meeting_of_host(const HostTable& table, int rank) {
  const auto host = static_cast<std::size_t>(table.host_of[static_cast<std::size_t>(rank)]);
  return fmt::format("{}@{}", table.job, table.hosts[host].key);
}

UniqueFd make_event() {
  UniqueFd event = own_descriptor(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (event.valid()) return event;
  throw Error(ErrorCode::kSystem, fmt::format("eventfd failed: {}{}", std::strerror(errno), descriptor_hint(errno)));
}

}  // namespace

std::shared_ptr<HostsWorld> HostsWorld::meet(MetHosts met, int rank, std::chrono::milliseconds timeout) {
  std::shared_ptr<HostsWorld> world;
  const Complaint complaint = attempt([&] { world.reset(new HostsWorld(met, rank, timeout)); });
  if (!complaint) return world;
  const int host = met.table.host_of[static_cast<std::size_t>(rank)];
  if (met.table.leader_of(rank) == rank) {
    // The other hosts wait for this one, and know nothing of what its ranks have met.
    std::vector<UniqueFd> links;
    (void)attempt([&] { link_hosts(met.table, host, std::move(met.listener), Clock::now() + timeout * 3 / 4, links); });
    found_together(links, met.table, host, complaint, timeout / 4);
  }
  throw Error(*complaint);
}

// Half of the timeout: the ranks of a host have just been there, and the other hosts wait for what becomes of it.
HostsWorld::HostsWorld(MetHosts& met, int rank, std::chrono::milliseconds timeout)
    : ProcessWorld(meeting_of_host(met.table, rank), rank, met.table.ranks_beside(rank), timeout / 2),
      table_(met.table),
      rank_(rank) {
  UniqueFd event;
  Complaint complaint;
  if (rank == ranks().leader()) complaint = attempt([&] { event = make_event(); });
  const auto never = [](int /*place*/) { return false; };
  lack_of_wake_ = attempt([&] {
    in_group_numbers([&] { wake_ = rendezvous().broadcast(event, complaint, Clock::now() + timeout, never); });
  });
  listener_ = std::move(met.listener);
}

void HostsWorld::found(int rank, std::int64_t reserved_bytes, std::chrono::milliseconds timeout,
                       const std::function<void(SymmetricRegion)>& attach) {
  const Clock::time_point start = Clock::now();
  const bool leads = rank == ranks().leader();
  SymmetricRegion region;
  std::vector<UniqueFd> links;
  Complaint complaint = attempt([&] {
    ProcessWorld::found(rank, reserved_bytes, timeout, [&](SymmetricRegion own) {
      // Here all are told of it.
      if (lack_of_wake_) throw Error(*lack_of_wake_);
      region = own;
      for (int other = 0; leads && other < ranks().num_ranks; ++other) {
        if (!ranks().has(other))
          region.as_rank(other).commit(0, ControlView::committed_bytes(other, ranks().num_ranks));
      }
      attach(std::move(own));
    });
  });
  if (!leads) {
    if (complaint) throw Error(*complaint);
    return;
  }
  // Also where this host has failed: the others hear of it so. Ranks that follow wait a little longer than the timeout
  // for what their leader finds.
  const Complaint unlinked =
      attempt([&] { link_hosts(table_, host_of(rank), std::move(listener_), start + timeout * 3 / 4, links); });
  if (!complaint) complaint = unlinked;
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(start + timeout - Clock::now());
  found_together(links, table_, host_of(rank), complaint, std::max(left, timeout / 8));
  uplink_ = std::make_unique<Uplink>(
      Uplink::Setup{.table = table_,
                    .host = host_of(rank),
                    .links = std::move(links),
                    .wake = wake_.get(),
                    .control = ControlView(region, ranks().num_ranks),
                    .timeout = timeout,
                    .is_alive = [this, control = ControlView(region, ranks().num_ranks)](int peer) {
                      // A process does not see its own lock.
                      return peer == rank_ || is_alive(peer, control.rank(peer).process);
                    }});
}

std::string HostsWorld::host_address() const {
  return parse_host_and_port(table_.hosts[static_cast<std::size_t>(host_of(rank_))].address).host;
}

void HostsWorld::notify() noexcept {
  const std::uint64_t one = 1;
  // Fails only where so much has been told already that the uplink wakes up anyway.
  (void)!::write(wake_.get(), &one, sizeof(one));
}

}  // namespace epistle
