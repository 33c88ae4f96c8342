// Benchmarks dispatchers on a group: verified against the oracle, timed phase by phase, beside the memory-copy limit of
// the same run. Collective; used by the command and by the benchmark suite.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "epistle/dispatcher.hpp"
#include "epistle/group.hpp"

#include "measure/copy_limit.hpp"
#include "measure/statistics.hpp"
#include "measure/verify.hpp"

namespace epistle {

struct BenchSpec {
  std::vector<std::string> dispatchers;
  DispatcherConfig config;
  std::uint64_t seed = 1;
  std::int32_t num_iterations = 30;
  std::int32_t num_warmups = 5;
  bool bind = true;  ///< bind each rank to its share of the processing units, where there is one for each worker
  bool stage_combine = false;  ///< expert outputs lie in private memory, so combine copies them first
  /// What outputs are compared with, before and after the timed iterations, on every rank; null = not verified.
  std::shared_ptr<const Expectation> expectation;
};

enum class BenchPhase : std::int32_t { kLayout, kDispatch, kCombine, kRoundTrip };
[[nodiscard]] std::string_view to_string(BenchPhase phase) noexcept;

/// One dispatcher, one phase. Bytes are means over ranks.
struct PhaseResult {
  std::string dispatcher;
  BenchPhase phase = BenchPhase::kLayout;
  Summary time_us;  ///< from the first rank's start to the last rank's end
  std::int64_t algorithm_bytes =
      0;                         ///< per rank: rows received (one per token and rank, local ones included) x row size
  std::int64_t wire_bytes = 0;   ///< per rank: what crossed between ranks
  std::int64_t moved_bytes = 0;  ///< per rank: what must be read and written once, whatever the dispatcher
  double limit_fraction = 0.0;   ///< moved bytes of all ranks per time, over the copy limit
};

/// How evenly rows fall on ranks.
struct LoadSummary {
  double rows_max_over_mean = 0.0;         ///< (token, rank) pairs received
  double assignments_max_over_mean = 0.0;  ///< (token, expert) assignments received
  std::int64_t max_rows = 0;
  std::int64_t dropped = 0;  ///< assignments that did not fit, over all ranks
  std::int64_t padding_rows = 0;
};

struct DispatcherSummary {
  std::string dispatcher;
  std::int64_t max_buffer_bytes = 0;  ///< largest rank, as the layout predicts
  bool buffers_as_predicted = false;  ///< the operating system counts the same on every rank
};

struct BenchResult {
  CopyLimit limit;
  std::vector<PhaseResult> phases;
  std::vector<DispatcherSummary> dispatchers;
  LoadSummary load;
  bool verified = false;            ///< every output bit of every rank was compared and equal
  std::int64_t verified_bytes = 0;  ///< compared, over all ranks and dispatchers
  std::string mismatch;             ///< the first difference found, with its rank; empty = none
};

/// How far a run is: tasks follow each other ("checking direct"), each from 0 to `total` steps; 0 = not known.
struct BenchStep {
  std::string_view task;
  std::int64_t done = 0;
  std::int64_t total = 0;
};

/// Called on every rank at the start of a task or after a step of it.
using BenchProgress = std::function<void(const BenchStep& step)>;

/// Collective. `own_table` is this rank's routing. The result is the same on all ranks.
[[nodiscard]] BenchResult run_dispatch_bench(Group& group, const BenchSpec& spec, const RoutingTable& own_table,
                                             const BenchProgress& progress = {});

}  // namespace epistle
