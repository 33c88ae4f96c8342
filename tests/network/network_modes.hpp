// What a rank of scripts/network-check does with dispatchers.
#pragma once

#include <cstdint>

#include <nlohmann/json.hpp>

#include "epistle/group.hpp"

namespace epistle::testing {

/// Prepares, dispatches and combines `num_tokens` tokens per rank by `hybrid`, with uniform and with group-limited
/// routing, and compares what its links and the interfaces of the hosts have counted with what the routing asks for.
[[nodiscard]] nlohmann::ordered_json count_bytes(Group& group, std::int64_t num_tokens);

/// `num_trips` random round trips by `hybrid` and `alltoall`, every bit compared; and what this process holds of memory
/// and descriptors, before and after.
[[nodiscard]] nlohmann::ordered_json soak(Group& group, std::int64_t num_trips);

/// Round trips by `hybrid` and `alltoall`, every bit compared, until a rank is lost; then `num_trips` without those
/// that are. Whom the first error has named, and who is left out.
[[nodiscard]] nlohmann::ordered_json go_on_masked(Group& group, std::int64_t num_trips);

/// A dispatch of `hybrid` of `num_tokens` tokens per rank, and when its parts were done, in microseconds since the
/// first began anywhere. Clocks are those of one machine.
[[nodiscard]] nlohmann::ordered_json record_timeline(Group& group, std::int64_t num_tokens);

/// What a rank of a group takes: its memory, and that of the group that it shares with the ranks of its host.
[[nodiscard]] nlohmann::ordered_json memory_of_rank();

}  // namespace epistle::testing
