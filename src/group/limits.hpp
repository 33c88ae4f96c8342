#pragma once

#include <chrono>
#include <span>

#include "epistle/group.hpp"

namespace epistle {

/// Most ranks of a group on one host: every rank maps every other rank's memory.
inline constexpr int kMaxRanksOfHost = 1024;

/// Longest timeout, some 24 days; what is longer counts as this. Deadlines stay far from the ends of the clock.
inline constexpr std::chrono::milliseconds kMaxTimeout{std::chrono::hours(24 * 24)};

/// A host counts as silent after this part of the timeout: whoever waits for its ranks must hear of it before giving up
/// others, whose news it holds back.
[[nodiscard]] constexpr std::chrono::milliseconds longest_silence(std::chrono::milliseconds timeout) noexcept {
  return timeout * 3 / 4;
}

/// Rank 0 waits first and names the rank at fault; a little patience lets that answer arrive.
[[nodiscard]] constexpr std::chrono::milliseconds patience_behind_root(std::chrono::milliseconds timeout) noexcept {
  return timeout / 4 + std::chrono::milliseconds(100);
}

/// Throws kInvalidArgument unless 1 <= num_ranks <= kMaxRanksOfHost.
void check_num_ranks(int num_ranks);

/// Of a group that may span hosts: a failure is packed with 20-bit rank numbers.
void check_num_ranks_of_hosts(int num_ranks);

/// The timeout that `options` ask for: the setting EPISTLE_TIMEOUT_MS where they name none.
[[nodiscard]] std::chrono::milliseconds resolve_timeout(const GroupOptions& options);

/// Ranks of a domain, from what GroupOptions::domain_size declares. 0: the setting EPISTLE_DOMAIN_SIZE; where that is 0
/// too, what is found: the largest blocks of ranks that lie on one host each (`host_of`, by rank), all of one size.
/// Throws kInvalidArgument, with what was found, where the declaration does not fit.
[[nodiscard]] int resolve_domain_size(int declared_size, std::span<const int> host_of);
struct DomainSizes {
  int host = 1;
  int gpu = 1;
};
/// The same of host memory and of GPUs. Hosts in one NVLink fabric have GPUs that reach each other (`gpu_reach_of`:
/// ranks with the same number): domains of GPUs may be larger than a host then, and a declaration that is counts for
/// them, while those of host memory are what is found.
[[nodiscard]] DomainSizes resolve_domain_sizes(int declared_size, std::span<const int> host_of,
                                               std::span<const int> gpu_reach_of);
/// The same of ranks that are all on one host.
[[nodiscard]] int resolve_domain_size(int declared_size, int num_ranks);

}  // namespace epistle
