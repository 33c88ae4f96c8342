// Times pairs of a dispatch, with its routing read anew, and a combine that follow each other on the streams of all
// ranks: captured into a graph, or launched by the host.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include <cuda_runtime_api.h>

#include "epistle/dispatcher.hpp"
#include "epistle/group.hpp"

#include "measure/bench_types.hpp"
#include "measure/cuda/captured_graph.hpp"
#include "measure/cuda/compute_beside.hpp"
#include "measure/cuda/stream_timer.hpp"
#include "measure/cuda/timed_event.hpp"
#include "measure/slowest_rank.hpp"

namespace epistle {

/// What pairs are made with on one rank. Must outlive who keeps it.
struct PairCalls {
  Group& group;
  cudaStream_t stream;
  Dispatcher& dispatcher;
  std::function<Handle()> put_pair;  ///< puts one pair on the stream, and gives its routing
  /// Puts so many requests on the stream that are under way at once. Empty: there is one.
  std::function<void(std::int32_t num_requests)> put_requests = {};
  ComputeBeside* compute = nullptr;  ///< what runs beside chains that the host launches; null = nothing
  std::int64_t compute_units = 0;    ///< for each pair
};

/// Pairs captured into one CUDA graph. Comes and goes while no stream of any rank has work.
class PairGraph {
 public:
  PairGraph(const PairCalls& calls, std::int32_t num_pairs);

  void launch() const { graph_.launch(stream_); }

 private:
  cudaStream_t stream_;
  std::vector<Handle> handles_;  ///< of the pairs: they live as long as the graph
  CapturedGraph graph_;
};

/// Times of one pair in microseconds, each sample that of the slowest rank. Collective. The first num_warmups of the
/// specification are not kept. Between the two events of a sample nothing is allocated, and the host waits for nothing.
class PairRuns {
 public:
  /// Called after each step of work; may be empty.
  using OnStep = std::function<void(std::int64_t done, std::int64_t total)>;

  /// Keeps references to all of them.
  PairRuns(const PairCalls& calls, const BenchSpec& spec, const OnStep& on_step);

  /// One sample per replay of `graph`, which has one pair: from the event behind the replay before it to the event
  /// behind itself. The streams start when all replays of a block are on them: a sample does not show how fast the host
  /// launches, but it shows what it takes to start a graph behind another one.
  [[nodiscard]] std::vector<double> replays(const PairGraph& graph);

  /// One sample: `graph` has a chain, and runs behind itself.
  [[nodiscard]] double chain_in_graph(const PairGraph& graph);
  /// One sample: the host launches call after call while the stream works, behind one pair that brings the ranks
  /// together. A host that is slower than the stream shows.
  [[nodiscard]] double chain_from_host();
  /// A chain as chain_from_host() puts it on the stream.
  void put_chain() const;

  /// One sample of these per iteration.
  [[nodiscard]] std::vector<double> chains_in_graph(const PairGraph& graph);
  [[nodiscard]] std::vector<double> chains_from_host();

 private:
  void report(std::int64_t done, std::int64_t total) const {
    if (on_step_) on_step_(done, total);
  }
  template <typename TimeOne>
  [[nodiscard]] std::vector<double> one_per_iteration(const TimeOne& time_one);

  const PairCalls& calls_;
  const BenchSpec& spec_;
  const OnStep& on_step_;
  SlowestRank slowest_;
  StreamTimer timer_;
  TimedEvent begin_;
  TimedEvent end_;
};

}  // namespace epistle
