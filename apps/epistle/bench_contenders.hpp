// What a plan gets from a profile, and what takes part in a comparison.
#pragma once

#include "bench_options.hpp"
#include "bench_plan.hpp"

namespace epistle::cli {

/// Reads the profile that the options name: a benchmark takes its settings, a comparison lets them take part.
void adopt_profile(const BenchOptions& options, BenchPlan& plan);

/// What can serve becomes a contender, the rest gets its reason. Throws kUnsupported where nothing can.
void choose_contenders(BenchPlan& plan);

/// Throws kInvalidArgument where chains cannot be captured.
void check_chain_in_graph(const BenchSpec& spec);

}  // namespace epistle::cli
