// The order of sums of dispatchers that sum inside a domain before rows cross to another.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "dispatch/call/resolved_config.hpp"

namespace epistle {

/// Makes SumOrder::kDomains the first of `orders`: the one that is taken where none is named.
void put_domains_first(std::vector<SumOrder>& orders);

/// Why `hybrid` on `device` cannot sum as `config` has it: over several domains it has one order only.
[[nodiscard]] std::optional<std::string> cannot_sum_over_domains(const ResolvedConfig& config, int num_ranks,
                                                                 Device device);

}  // namespace epistle
