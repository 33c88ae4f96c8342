// Benchmarks dispatchers of the host device on a group: verified against the oracle, timed phase by phase, beside the
// memory-copy limit of the same run. Collective; used by the command and by the benchmark suite.
#pragma once

#include "epistle/group.hpp"
#include "epistle/routing.hpp"

#include "measure/bench_types.hpp"

namespace epistle {

/// Collective. `own_table` is this rank's routing. The result is the same on all ranks.
[[nodiscard]] BenchResult run_dispatch_bench(Group& group, const BenchSpec& spec, const RoutingTable& own_table,
                                             const BenchProgress& progress = {});

}  // namespace epistle
