// How even loads of ranks are, said in one place.
#pragma once

#include <cstdint>
#include <span>

namespace epistle::balance {

/// Mean over largest load of the ranks that can have any: 1 is even, and nothing at all is even, too.
[[nodiscard]] double balancedness_of(std::span<const std::int64_t> rank_loads, std::int32_t num_holders);

}  // namespace epistle::balance
