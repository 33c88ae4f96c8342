// Where the experts of a benchmark lie: --placement.
#pragma once

#include <cstdint>
#include <string>

#include "epistle/placement.hpp"

namespace epistle::cli {

/// "replicas:N": experts in blocks, and on every rank N more slots, for the first experts of the rank behind it. Any
/// other text is the name of a JSON file: {"slot_experts": [[experts of rank 0's slots], ...]} and, as in
/// ReplicaChoice, quotas, near_first, domain_of_rank and max_imbalance. Throws Error; of a file kNotFound or
/// kCorruptInput.
[[nodiscard]] Placement read_placement(const std::string& spec, std::int32_t num_experts, int num_ranks);

}  // namespace epistle::cli
