// The benchmark of the CUDA device as it runs on one rank; see cuda_bench.hpp for what it does.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>

#include "epistle/dispatcher.hpp"

#include "dispatch/call/resolved_config.hpp"
#include "gpu/cuda_error.hpp"
#include "gpu/stream.hpp"
#include "measure/bench_check.hpp"
#include "measure/bench_collector.hpp"
#include "measure/bench_inputs.hpp"
#include "measure/cuda/captured_graph.hpp"
#include "measure/cuda/compute_beside.hpp"
#include "measure/cuda/device_inputs.hpp"
#include "measure/cuda/gpu_memory.hpp"
#include "measure/cuda/pair_runs.hpp"
#include "measure/cuda/stream_timer.hpp"
#include "measure/received_data.hpp"

namespace epistle {

/// What a rank has on its GPU as long as the benchmark runs. The device is known once there is a dispatcher.
struct RankOnGpu {
  /// `urgent`: what is put on its stream comes before other work of the GPU.
  RankOnGpu(int device, const RoutingTable& table, BenchInputs& host, bool urgent)
      : guard(device),
        stream(urgent ? cuda::StreamPriority::kHighest : cuda::StreamPriority::kLowest),
        inputs(stream.get(), table, host) {}

  cuda::DeviceGuard guard;
  cuda::OwnedStream stream;
  DeviceInputs inputs;
};

/// One dispatcher while it is measured. Declared in the order in which its parts need each other.
struct CudaTrial {
  CudaTrial(std::string contender, Dispatcher&& made, const BenchSpec& spec, std::int32_t num_of_buffers)
      : name(std::move(contender)), num_buffers(num_of_buffers), dispatcher(std::move(made)), times(spec) {}

  std::string name;
  std::int32_t num_buffers;
  Dispatcher dispatcher;
  PhaseTimes times;
  DeviceMemory private_outputs = {};  ///< expert outputs, where combine has to copy them
  Handle handle = {};
  Received received = {};                   ///< the rows of the last dispatch
  std::vector<Received> in_flight = {};     ///< of the requests before it, which are under way with it
  std::optional<CapturedGraph> graph = {};  ///< capacity sizing
  Handle graph_handle = {};                 ///< lives as long as the graph
  ReceivedData graph_rows = {};             ///< where the graph's dispatch puts its rows
};

/// A contender: what its chains are timed with.
struct CudaTurns;

class CudaBench {
 public:
  CudaBench(Group& group, const BenchSpec& spec, const RoutingTable& own_table, const BenchProgress& progress);

  [[nodiscard]] BenchResult run();

 private:
  void run_alone(const Contender& contender);
  void run_in_turns();
  void start(CudaTrial& trial);
  [[nodiscard]] std::unique_ptr<CudaTrial> make_trial(const Contender& contender);
  void check_after_times(CudaTrial& trial);
  void finish_turns(std::unique_ptr<CudaTrial>& trial, CudaTurns& turns);
  [[nodiscard]] PairCalls pair_calls(CudaTrial& trial);
  [[nodiscard]] std::int64_t free_gpu_bytes() const;
  void start_rank(const Dispatcher& dispatcher);
  void first_round_trip(CudaTrial& trial);
  void fill_other_buffers(CudaTrial& trial);
  void poison(const ReceivedData& received);
  void check(CudaTrial& trial, const ReceivedData& received, std::string_view when);
  void recheck(CudaTrial& trial, std::string_view when, const std::function<ReceivedData()>& calls);
  void capture(CudaTrial& trial);
  void time_phases(CudaTrial& trial);
  void time_calls(CudaTrial& trial, StreamTimer& timer, std::int32_t round);
  void time_round_trips(CudaTrial& trial, StreamTimer& timer, std::int32_t round);
  void time_graph(CudaTrial& trial, StreamTimer& timer, std::int32_t round);
  void add_times(const CudaTrial& trial);
  void time_pairs(CudaTrial& trial);
  /// Dispatches with ids, one by one, as a caller with a clock sees them.
  void time_host_calls(CudaTrial& trial);
  [[nodiscard]] Stream stream() const noexcept { return rank_->stream.get(); }
  [[nodiscard]] Handle prepare(Dispatcher& dispatcher) {
    return dispatcher.prepare({.expert_ids = rank_->inputs.ids(), .weights = rank_->inputs.probs()}, stream());
  }
  void prepare(CudaTrial& trial) { trial.handle = prepare(trial.dispatcher); }
  void dispatch(CudaTrial& trial);
  [[nodiscard]] Received dispatch_with_ids(Dispatcher& dispatcher);
  void prepare_and_dispatch(CudaTrial& trial);
  void put_requests(CudaTrial& trial, std::int32_t num_requests);
  void measure_compute(CudaTrial& first);
  void combine(CudaTrial& trial, const Received& received);
  void fill_expert_outputs(std::byte* device_rows, std::int64_t num_rows);
  /// Collective. Afterwards no stream of any rank has work: memory may come and go until the next barrier.
  void quiet(CudaTrial& trial) {
    trial.dispatcher.wait();
    group_.barrier();
  }
  void report(const BenchStep& step) const {
    if (progress_) progress_(step);
  }

  Group& group_;
  const BenchSpec& spec_;
  const RoutingTable& table_;
  const BenchProgress& progress_;
  ResolvedConfig config_;
  LayoutParams params_;
  BenchInputs inputs_;
  BenchCollector collector_;
  std::unique_ptr<BenchCheck> check_;  ///< null = not verified
  std::optional<RankOnGpu> rank_;
  std::optional<ComputeBeside> compute_;  ///< where work runs beside chains
};

}  // namespace epistle
