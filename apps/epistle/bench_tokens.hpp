// How many tokens each rank of a benchmark has.
#pragma once

#include <cstdint>
#include <vector>

#include "bench_options.hpp"

namespace epistle::cli {

/// One count per rank. With a spread S, a rank that --tokens gives T tokens gets one of the whole numbers from
/// T x (1 - S), rounded up, to T, all of them equally likely: a function of the seed and the rank alone. Throws
/// kInvalidArgument where --tokens lists another number of counts than there are ranks.
[[nodiscard]] std::vector<std::int64_t> tokens_per_rank(const BenchOptions& options, int num_ranks);

}  // namespace epistle::cli
