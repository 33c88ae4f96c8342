// Placements for engines whose replicas share an expert's load evenly and whose slots are all filled: what the
// balancers of vLLM and SGLang and EPLB's rebalance_experts return.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "balance/eplb.hpp"

namespace epistle::balance {

struct EngineRequest {
  std::vector<std::vector<double>> windows;  ///< [num_windows][num_experts]; added up
  EplbShape shape;
  /// The expert of every slot now, ranks in order. What gains no more than `hysteresis` over it costs no copy.
  std::optional<std::vector<std::int32_t>> current = std::nullopt;
  double hysteresis = 0.005;
};

struct EnginePlan {
  std::vector<std::int32_t> experts;  ///< [num_slots], ranks in order
  double balancedness = 0.0;          ///< mean over largest load of a rank under an even split
  std::int64_t num_copies = 0;        ///< from rank to rank; 0 without a current placement
};

/// The best of: what is there, few changes to it, a plan from nothing, EPLB's own (where slots, ranks and groups divide
/// as that wants it). With groups and several nodes, only plans that keep a group on a node where they can. Never worse
/// than EPLB by more than the hysteresis, and than what is there at all. Throws kInvalidArgument.
[[nodiscard]] EnginePlan plan_for_engine(const EngineRequest& request);

}  // namespace epistle::balance
