// Which slot serves which token, by the text of the contract ("Choice of replica" in dispatcher.hpp), for the oracle:
// everything is computed anew for every token, in the order of that text.
#pragma once

#include <cstdint>

#include "epistle/placement.hpp"

#include "dispatch/call/resolved_config.hpp"

namespace epistle::reference {

struct TokenAt {
  int rank = 0;
  std::int64_t token = 0;
  std::uint64_t step_seed = 0;
};

/// `placement` null or trivial: experts lie in blocks.
[[nodiscard]] SlotRef slot_of(const ResolvedConfig& config, int num_ranks, const Placement* placement,
                              std::int32_t expert, const TokenAt& at);

/// Local experts of every rank.
[[nodiscard]] std::int32_t num_local_experts(const ResolvedConfig& config, int num_ranks, const Placement* placement,
                                             int rank);

}  // namespace epistle::reference
