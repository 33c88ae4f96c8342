// What a benchmark needs in host memory, told before it starts: a run that cannot fit must be an error, not a killed
// process.
#pragma once

#include <cstdint>
#include <vector>

#include "epistle/routing.hpp"
#include "epistle/types.hpp"

#include "measure/bench_types.hpp"

namespace epistle {

struct BenchMemoryRequest {
  std::vector<std::int64_t> tokens_per_rank = {0};
  GroupKind group = GroupKind::kThreads;
  bool verify = true;

  [[nodiscard]] int num_ranks() const noexcept { return static_cast<int>(tokens_per_rank.size()); }
};

/// Bytes of the routing tables of all ranks and of what is derived from them, on all ranks together: a lower bound of
/// what the benchmark takes, known before a table exists.
[[nodiscard]] std::int64_t estimate_table_bytes(const BenchSpec& spec, const BenchMemoryRequest& request);

/// Bytes of everything that a benchmark with these tables holds at its largest moment, on all ranks together. The
/// dispatchers' buffers are counted by their own plans.
[[nodiscard]] std::int64_t estimate_bench_bytes(const BenchSpec& spec, const std::vector<RoutingTable>& tables,
                                                const BenchMemoryRequest& request);

}  // namespace epistle
