// Benchmarks dispatchers of the CUDA device on a group: verified against the oracle as on the host, timed on the ranks'
// streams, beside the peer-store limit of the same run. Needs no CUDA header.
#pragma once

#include "epistle/group.hpp"
#include "epistle/routing.hpp"

#include "measure/bench_types.hpp"

namespace epistle {

/// Collective. `own_table` is this rank's routing. The result is the same on all ranks, but for the names of rank 0's
/// GPU.
[[nodiscard]] BenchResult run_cuda_bench(Group& group, const BenchSpec& spec, const RoutingTable& own_table,
                                         const BenchProgress& progress = {});

}  // namespace epistle
