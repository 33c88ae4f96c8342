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

HostsWorld::HostsWorld(MetHosts met, int rank, std::chrono::milliseconds timeout)
    : ProcessWorld(meeting_of_host(met.table, rank), rank, met.table.ranks_beside(rank), timeout),
      table_(std::move(met.table)),
      listener_(std::move(met.listener)),
      rank_(rank) {
  UniqueFd event;
  Complaint complaint;
  if (rank == ranks().leader()) complaint = attempt([&] { event = make_event(); });
  const auto never = [](int /*place*/) { return false; };
  in_group_numbers([&] { wake_ = rendezvous().broadcast(event, complaint, Clock::now() + timeout, never); });
}

void HostsWorld::found(int rank, std::int64_t reserved_bytes, std::chrono::milliseconds timeout,
                       const std::function<void(SymmetricRegion)>& attach) {
  const Clock::time_point start = Clock::now();
  const bool leads = rank == ranks().leader();
  SymmetricRegion region;
  std::vector<UniqueFd> links;
  const Complaint complaint = attempt([&] {
    ProcessWorld::found(rank, reserved_bytes, timeout, [&](SymmetricRegion own) {
      region = own;
      for (int other = 0; leads && other < ranks().num_ranks; ++other) {
        if (!ranks().has(other))
          region.as_rank(other).commit(0, ControlView::committed_bytes(other, ranks().num_ranks));
      }
      attach(std::move(own));
    });
    // Ranks that follow wait a little longer than the timeout for what their leader finds.
    if (leads) links = link_hosts(table_, host_of(rank), std::move(listener_), start + timeout * 3 / 4);
  });
  if (!leads) {
    if (complaint) throw Error(*complaint);
    return;
  }
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

std::vector<UniqueFd> HostsWorld::exchange_fds(const UniqueFd& /*own*/, const Watch& /*watch*/) {
  throw Error(ErrorCode::kUnsupported,
              fmt::format("memory is shared by descriptors between processes of one host, but this group has {}",
                          table_.describe()));
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
