// The connections between hosts: one for each pair, between the ranks that lead there.
#pragma once

#include <string>
#include <vector>

#include "core/complaint.hpp"
#include "group/fd_channel.hpp"
#include "group/net/host_table.hpp"

namespace epistle {

/// Fills in a socket for each host, its own empty. Throws kTimeout or kPeerLost that names the leader of a host that
/// cannot be reached, kSystem; `links` then has those that there are, for found_together(). Hosts that rank 0's could
/// not take in have been told of it.
void link_hosts(const HostTable& table, int host, UniqueFd listener, Deadline deadline, std::vector<UniqueFd>& links);

/// Collective over the leaders: returns when no host has a complaint; otherwise all throw the same code, with the same
/// rank at fault. Who blames itself is believed before who blames another. `timeout` is how long rank 0's host waits.
void found_together(const std::vector<UniqueFd>& links, const HostTable& table, int host, const Complaint& complaint,
                    std::chrono::milliseconds timeout);

}  // namespace epistle
