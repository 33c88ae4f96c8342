// What a benchmark is asked for and what it gives, on every device.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "epistle/config.hpp"
#include "epistle/dispatcher.hpp"
#include "epistle/types.hpp"

#include "measure/copy_limit.hpp"
#include "measure/statistics.hpp"
#include "measure/verify.hpp"

namespace epistle {

/// kCuda: calls in a row whose mean is one iteration's time, unless asked for otherwise.
inline constexpr std::int32_t kDefaultRunsPerSample = 8;

/// One of those that a comparison lets take turns: a dispatcher and what it is made with.
struct Contender {
  std::string name;  ///< in the results
  std::string dispatcher;
  HostOptions host = {};  ///< kHost only
  CudaOptions cuda = {};  ///< kCuda only
  std::int32_t num_buffers = 1;
};

struct BenchSpec {
  std::vector<std::string> dispatchers;  ///< measured one after the other
  /// Where there are any, these are measured instead: all of them live at once, and take turns in every iteration, each
  /// iteration beginning with another one.
  std::vector<Contender> contenders;
  DispatcherConfig config;
  int domain_size = 0;  ///< of the group; 0 = all ranks are in one domain
  Device device = Device::kHost;
  HostOptions host;  ///< kHost only
  CudaOptions cuda;  ///< kCuda only
  std::uint64_t seed = 1;
  std::int32_t runs_per_sample = kDefaultRunsPerSample;  ///< kCuda only
  std::int32_t num_iterations = 30;
  std::int32_t num_warmups = 5;
  std::int32_t num_chained_pairs = 0;  ///< pairs in a chain, see PairTimes; 0 = no chains
  std::int32_t num_replays = 0;        ///< kCuda only: replays of a graph of one pair; 0 = none
  std::int32_t num_host_calls = 0;     ///< kCuda only: dispatches with ids by the host's clock; 0 = none
  /// Requests of a chain that are under way at once: as many dispatches, each with buffers of its own, and then their
  /// combines.
  std::int32_t num_in_flight = 1;
  /// Contenders: work runs beside every chain, which then takes until both have ended. See ComputeLoad, ComputeBeside.
  bool compute_beside = false;
  std::int64_t compute_units =
      0;                        ///< for each pair; 0 = so many that they take as long as a pair of the first contender
  bool chain_in_graph = false;  ///< kCuda, contenders only: chains are captured, not launched by the host
  /// kHost: bind each rank to its share of the processing units, where there is one for each worker.
  bool bind = true;
  bool stage_combine = false;  ///< expert outputs lie in private memory, so combine copies them first
  /// What outputs are compared with, before and after the timed iterations, on every rank; null = not verified.
  std::shared_ptr<const Expectation> expectation;
};

/// Buffers that a contender is made with: one for every request under way, and no fewer than it asks for.
[[nodiscard]] inline std::int32_t num_buffers_of(const Contender& contender, const BenchSpec& spec) {
  return std::max(contender.num_buffers, spec.num_in_flight);
}

enum class BenchPhase : std::int32_t {
  kLayout,    ///< prepare
  kDispatch,  ///< with a handle that was prepared before
  kCombine,
  kRoundTrip,           ///< prepare, dispatch and combine
  kDispatchWithLayout,  ///< kCuda: prepare and dispatch
  kGraphRoundTrip,      ///< kCuda, capacity sizing: the round trip, replayed from a CUDA graph
};
inline constexpr std::size_t kNumBenchPhases = 6;
[[nodiscard]] std::string_view to_string(BenchPhase phase) noexcept;

/// One dispatcher, one phase. Bytes are means over ranks.
struct PhaseResult {
  std::string dispatcher;
  BenchPhase phase = BenchPhase::kLayout;
  Summary time_us;  ///< kHost: from the first rank's start to the last rank's end. kCuda: of the slowest rank's stream
  std::int64_t algorithm_bytes =
      0;                         ///< per rank: rows received (one per token and rank, local ones included) x row size
  std::int64_t wire_bytes = 0;   ///< per rank: what crossed between ranks
  LinkBytes link_bytes;          ///< per rank: what each class of links carries for its tokens, headers included
  std::int64_t moved_bytes = 0;  ///< per rank: what must be read and written once, whatever the dispatcher
  /// kHost: moved bytes of all ranks per time, over the copy limit. kCuda: wire bytes of a rank per time, over the link
  /// limit.
  double limit_fraction = 0.0;
  double network_fraction = 0.0;  ///< with a network limit: network bytes of a rank per time, over the network limit
};

/// Pairs of calls in a row: a dispatch that brings its expert ids, so that the routing is read anew, and the combine of
/// Received::expert_outputs(). No host wait between them, no expert work.
struct PairTimes {
  std::string dispatcher = {};   ///< or the name of the contender
  std::int32_t num = 0;          ///< pairs of a chain, or replays of a graph of one pair
  bool in_graph = false;         ///< kCuda: captured into a CUDA graph; otherwise launched by the host
  std::int64_t num_samples = 0;  ///< chains, or replays
  Summary time_us = {};          ///< of one pair (a chain's time by its pairs), each sample that of the slowest rank
  std::vector<double> samples_us = {};  ///< in the order of iterations
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
  bool buffers_as_predicted = false;  ///< the system counts the same on every rank
  std::string tuning = {};            ///< kCuda: what its tuning table chose
  /// Contenders: what all ranks take together. kHost: shared memory, as the kernel counts it. kCuda: how much more of
  /// the GPUs' memory is free when it has gone, whoever took it.
  std::int64_t device_bytes = 0;
};

/// A contender that could not be made here.
struct Unavailable {
  std::string name;
  std::string reason;
};

/// What a rank puts to a rank across the network per second, all ranks at once and each to another one, and by what.
struct NetworkLimit {
  double bytes_per_s = 0.0;
  std::vector<std::string> transports;  ///< [num_ranks] provider and card
};

/// What one rank can store per second, all ranks storing at once, 16 bytes at a time: the yardstick of the wire rates.
struct LinkLimit {
  std::string kind;  ///< "peer stores", or "local stores" where ranks share a GPU or there is only one
  int few_sms = 0;
  int all_sms = 0;
  double bytes_per_s_few_sms = 0.0;
  double bytes_per_s_all_sms = 0.0;
  std::int64_t buffer_bytes = 0;  ///< stored by each rank in one measurement

  [[nodiscard]] double bytes_per_s() const noexcept { return std::max(bytes_per_s_few_sms, bytes_per_s_all_sms); }
};

/// The GPUs of a run, as rank 0 sees them.
struct CudaRun {
  LinkLimit limit;
  std::string gpu;       ///< of rank 0
  std::string driver;    ///< "580.159.04"; empty = not known
  int driver_cuda = 0;   ///< newest CUDA version of the driver, as CUDA counts: 13000 is 13.0
  int runtime_cuda = 0;  ///< CUDA version of the runtime in this build
  int num_sms = 0;       ///< of rank 0's GPU
  int num_visible_gpus = 0;
  int num_used_gpus = 0;       ///< by all ranks
  std::vector<int> device_of;  ///< [num_ranks] ordinal in the rank's own process
};

struct BenchResult {
  CopyLimit limit;                      ///< kHost
  std::optional<CudaRun> cuda;          ///< kCuda
  std::optional<NetworkLimit> network;  ///< where bytes between domains go over the network
  std::vector<PhaseResult> phases;
  std::vector<PairTimes> chains;
  std::vector<PairTimes> replays;  ///< kCuda
  /// kCuda: no pairs, but dispatches with ids, one by one, from the call until the host knows that its rows are there.
  std::vector<PairTimes> host_calls;
  std::vector<DispatcherSummary> dispatchers;
  std::vector<Unavailable> unavailable;  ///< contenders
  LoadSummary load;
  std::int64_t compute_units = 0;   ///< for each pair, where work ran beside chains
  double compute_unit_us = 0.0;     ///< of one unit alone, where that was measured
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

}  // namespace epistle
