#pragma once

#include <chrono>

#include "epistle/group.hpp"

namespace epistle {

/// Most ranks of a group on one host: every rank maps every other rank's memory, and a failure is packed with 16-bit
/// rank numbers.
inline constexpr int kMaxRanks = 1024;

/// Longest timeout, some 24 days; what is longer counts as this. Deadlines stay far from the ends of the clock.
inline constexpr std::chrono::milliseconds kMaxTimeout{std::chrono::hours(24 * 24)};

/// Throws kInvalidArgument unless 1 <= num_ranks <= kMaxRanks.
void check_num_ranks(int num_ranks);

/// The timeout that `options` ask for: the setting EPISTLE_TIMEOUT_MS where they name none.
[[nodiscard]] std::chrono::milliseconds resolve_timeout(const GroupOptions& options);

/// Ranks of a domain, from what GroupOptions::domain_size declares. 0: the setting EPISTLE_DOMAIN_SIZE; where that is 0
/// too, what is found: all ranks of one host reach each other. Throws kInvalidArgument, with what was found, where the
/// declaration does not fit.
[[nodiscard]] int resolve_domain_size(int declared_size, int num_ranks);

}  // namespace epistle
