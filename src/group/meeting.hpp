// The first half of a rendezvous: every rank finds rank 0, and rank 0 knows when all have come.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "group/descriptor.hpp"

namespace epistle {

/// Rank 0's side: returns a socket per rank, its own empty. Throws as Rendezvous does, after every rank that has come,
/// or comes within a moment, was told.
[[nodiscard]] std::vector<UniqueFd> hold_meeting(const std::string& job, int num_ranks,
                                                 std::chrono::milliseconds timeout);

/// Another rank's side: returns the socket to rank 0, which has taken this rank in.
[[nodiscard]] UniqueFd come_to_meeting(const std::string& job, int rank, int num_ranks,
                                       std::chrono::milliseconds timeout);

}  // namespace epistle
