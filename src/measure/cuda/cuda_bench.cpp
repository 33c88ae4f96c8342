#include "measure/cuda/cuda_bench.hpp"

#include <algorithm>
#include <array>
#include <memory>
#include <utility>

#include <cuda_runtime_api.h>

#include <fmt/format.h>

#include "measure/clock.hpp"
#include "measure/cuda/cuda_bench_rank.hpp"
#include "measure/cuda/link_probe.hpp"
#include "measure/gpu_driver.hpp"
#include "measure/network_limit.hpp"
#include "measure/slowest_rank.hpp"

namespace epistle {
namespace {

constexpr std::array<BenchPhase, 5> kPhases = {BenchPhase::kLayout, BenchPhase::kDispatch, BenchPhase::kCombine,
                                               BenchPhase::kDispatchWithLayout, BenchPhase::kRoundTrip};
constexpr std::array<BenchPhase, 1> kGraphPhases = {BenchPhase::kGraphRoundTrip};

}  // namespace

CudaBench::CudaBench(Group& group, const BenchSpec& spec, const RoutingTable& own_table, const BenchProgress& progress)
    : group_(group),
      spec_(spec),
      table_(own_table),
      progress_(progress),
      config_(resolve_config(spec.config, group.size())),
      params_(to_layout_params(config_, group.size())),
      inputs_({.rank = group.rank(), .seed = spec.seed, .num_tokens = own_table.num_tokens, .config = config_}),
      collector_(group, spec.expectation != nullptr) {
  if (spec.expectation != nullptr) check_ = std::make_unique<BenchCheck>(group, *spec.expectation, inputs_);
}

BenchResult CudaBench::run() {
  if (spec_.contenders.empty()) {
    for (const std::string& name : spec_.dispatchers) run_alone(contender_of(spec_, name));
  } else {
    run_in_turns();
  }
  BenchResult& result = collector_.result();
  if (crosses_network(group_)) {
    report({.task = "network limit"});
    add_network_limit(group_, result);
  }
  const double limit = result.cuda->limit.bytes_per_s();
  for (PhaseResult& phase : result.phases) {
    const double bytes_per_s = static_cast<double>(phase.wire_bytes) / (phase.time_us.median / kMicrosPerSecond);
    phase.limit_fraction = limit > 0.0 && phase.time_us.median > 0.0 ? bytes_per_s / limit : 0.0;
  }
  return std::move(result);
}

void CudaBench::run_alone(const Contender& contender) {
  const std::unique_ptr<CudaTrial> made = make_trial(contender);
  CudaTrial& trial = *made;
  start(trial);
  time_phases(trial);
  check_after_times(trial);
  time_host_calls(trial);
  time_pairs(trial);
  collector_.add_buffers(trial.name, trial.dispatcher);
  collector_.result().dispatchers.back().tuning = trial.dispatcher.describe_tuning(config_.max_tokens);
}

std::unique_ptr<CudaTrial> CudaBench::make_trial(const Contender& contender) {
  report({.task = fmt::format("preparing {}", contender.name)});
  DispatcherConfig config = spec_.config;
  config.num_buffers = num_buffers_of(contender, spec_);
  config.max_handles += spec_.num_chained_pairs;  // every pair of a chain has one, so that none is waited for
  return std::make_unique<CudaTrial>(contender.name, Dispatcher(group_, contender.dispatcher, config, contender.cuda),
                                     spec_, config.num_buffers);
}

/// Rows have been moved once, verified, when this returns.
void CudaBench::start(CudaTrial& trial) {
  quiet(trial);
  const bool first = !rank_;
  if (first) start_rank(trial.dispatcher);
  report({.task = fmt::format("preparing {}", trial.name)});
  prepare(trial);
  quiet(trial);
  first_round_trip(trial);
  if (!spec_.stage_combine) fill_other_buffers(trial);
  check(trial, data_of(trial.received), "checking");
  if (!first) return;
  const HostCopy received(rank_->stream.get(), data_of(trial.received), config_.top_k);
  const RowDescription& rows = received.data().description;
  collector_.add_load(trial.handle.wait_stats(),
                      {rows.expert_counts, static_cast<std::size_t>(rows.num_local_experts)});
}

/// Once more, as in the timed iterations: what they did to the dispatcher's state shows here.
void CudaBench::check_after_times(CudaTrial& trial) {
  recheck(trial, "rechecking", [&] {
    prepare(trial);
    dispatch(trial);
    combine(trial, trial.received);
    return data_of(trial.received);
  });
  if (trial.graph) {
    recheck(trial, "checking the graph of", [&] {
      trial.graph->launch(rank_->stream.get());
      return trial.graph_rows;
    });
  }
  quiet(trial);
}

/// What is known, and allocated, once the first dispatcher has chosen the GPU.
void CudaBench::start_rank(const Dispatcher& dispatcher) {
  rank_.emplace(dispatcher.device_ordinal(), table_, inputs_, spec_.compute_beside);
  const std::vector<RankDevice> devices = gather_devices(group_);
  CudaRun run;
  report({.task = "link limit"});
  run.limit = measure_link_limit(group_, rank_->stream.get(), devices);
  cudaDeviceProp properties{};
  cuda::check_cuda(cudaGetDeviceProperties(&properties, dispatcher.device_ordinal()),
                   "ask for the properties of the GPU");
  cuda::check_cuda(cudaDriverGetVersion(&run.driver_cuda), "ask for the version of the driver");
  cuda::check_cuda(cudaRuntimeGetVersion(&run.runtime_cuda), "ask for the version of the CUDA runtime");
  cuda::check_cuda(cudaGetDeviceCount(&run.num_visible_gpus), "count the GPUs");
  run.gpu = properties.name;
  run.driver = gpu_driver_version();
  run.num_sms = properties.multiProcessorCount;
  run.num_used_gpus = count_gpus(devices);
  for (const RankDevice& device : devices) run.device_of.push_back(device.ordinal);
  collector_.result().cuda = std::move(run);
  group_.barrier();  // all have their memory
}

// ---- Verification ---------------------------------------------------------------------------------------------------

/// Everything once, untimed: afterwards the expert outputs are where the timed iterations find them.
void CudaBench::first_round_trip(CudaTrial& trial) {
  dispatch(trial);
  quiet(trial);
  const std::int64_t num_rows = trial.received.num_rows();
  if (spec_.stage_combine) trial.private_outputs = DeviceMemory(num_rows * params_.combine_row_bytes);
  if (check_ != nullptr) {
    // The first dispatch told where the rows are; the second one has to write them.
    poison(data_of(trial.received));
    dispatch(trial);
    quiet(trial);
  }
  fill_expert_outputs(spec_.stage_combine ? trial.private_outputs.as<std::byte>()
                                          : static_cast<std::byte*>(trial.received.expert_outputs().data),
                      num_rows);
  group_.barrier();
  combine(trial, trial.received);
}

void CudaBench::dispatch(CudaTrial& trial) {
  trial.received.release();
  trial.received = trial.dispatcher.dispatch(
      {.handle = trial.handle, .tokens = rank_->inputs.tokens(), .scales = rank_->inputs.scales()}, stream());
}

Received CudaBench::dispatch_with_ids(Dispatcher& dispatcher) {
  return dispatcher.dispatch({.expert_ids = rank_->inputs.ids(),
                              .weights = rank_->inputs.probs(),
                              .tokens = rank_->inputs.tokens(),
                              .scales = rank_->inputs.scales()},
                             stream());
}

void CudaBench::prepare_and_dispatch(CudaTrial& trial) {
  trial.received.release();
  trial.received = dispatch_with_ids(trial.dispatcher);
  trial.handle = trial.received.handle();
}

void CudaBench::fill_expert_outputs(std::byte* device_rows, std::int64_t num_rows) {
  std::vector<std::byte> rows(static_cast<std::size_t>(num_rows * params_.combine_row_bytes));
  inputs_.fill_expert_outputs(rows.data(), num_rows);
  copy_to_device(rank_->stream.get(), device_rows, rows.data(), static_cast<std::int64_t>(rows.size()));
  wait_for_stream(rank_->stream.get());
}

/// Expert outputs into the buffers that the first round trip did not take: any of them may be the next.
void CudaBench::fill_other_buffers(CudaTrial& trial) {
  for (std::int32_t other = 1; other < trial.num_buffers; ++other) {
    trial.in_flight.push_back(std::move(trial.received));
    dispatch(trial);
    quiet(trial);
    fill_expert_outputs(static_cast<std::byte*>(trial.received.expert_outputs().data), trial.received.num_rows());
    group_.barrier();
  }
  trial.in_flight.clear();
}

/// Collective: overwrites what the calls that follow have to write, on all ranks before any of them sends.
void CudaBench::poison(const ReceivedData& received) {
  cudaStream_t stream = rank_->stream.get();
  fill_device(stream, received.row_data(), BenchCheck::kPoison, received.num_rows() * received.rows.row_bytes());
  if (received.scales.data != nullptr) {
    fill_device(stream, received.scale_data(), BenchCheck::kPoison, received.scale_bytes());
  }
  fill_device(stream, rank_->inputs.out(), BenchCheck::kPoison, rank_->inputs.out_bytes());
  wait_for_stream(stream);
  group_.barrier();
}

void CudaBench::combine(CudaTrial& trial, const Received& received) {
  ConstRows rows = received.expert_outputs();
  if (spec_.stage_combine) rows.data = trial.private_outputs.as();
  trial.dispatcher.combine({.handle = received.handle(), .rows = rows, .out = rank_->inputs.out_rows()}, stream());
}

void CudaBench::check(CudaTrial& trial, const ReceivedData& received, std::string_view when) {
  trial.dispatcher.wait();
  if (check_ == nullptr) return;
  const std::string task = fmt::format("{} {}", when, trial.name);
  const HostCopy copy(rank_->stream.get(), received, config_.top_k);
  copy_to_host(rank_->stream.get(), inputs_.out().data(), rank_->inputs.out(), rank_->inputs.out_bytes());
  wait_for_stream(rank_->stream.get());
  const Mismatch mismatch = check_->run(copy.data(), [&](std::int64_t done, std::int64_t total) {
    report({.task = task, .done = done, .total = total});
  });
  collector_.add_check(trial.name, mismatch, check_->num_bytes(copy.data()));
}

/// Makes calls as they were timed, once more over poison, and checks the rows that they give and the sums.
void CudaBench::recheck(CudaTrial& trial, std::string_view when, const std::function<ReceivedData()>& calls) {
  if (check_ == nullptr) return;
  poison(data_of(trial.received));  // the one buffer that there is
  check(trial, calls(), when);
}

// ---- Times ----------------------------------------------------------------------------------------------------------

void CudaBench::time_phases(CudaTrial& trial) {
  quiet(trial);
  StreamTimer timer(group_, rank_->stream.get(), spec_.runs_per_sample);
  if (config_.sizing == SizingMode::kCapacity) capture(trial);
  quiet(trial);
  const std::int32_t num_rounds = spec_.num_warmups + spec_.num_iterations;
  const std::string task = fmt::format("timing {}", trial.name);
  const std::int64_t num_steps = std::int64_t{trial.graph ? 3 : 2} * num_rounds;
  std::int64_t num_done = 0;
  const auto step = [&] { report({.task = task, .done = ++num_done, .total = num_steps}); };
  for (std::int32_t round = 0; round < num_rounds; ++round, step()) time_calls(trial, timer, round);
  for (std::int32_t round = 0; round < num_rounds; ++round, step()) time_round_trips(trial, timer, round);
  for (std::int32_t round = 0; trial.graph && round < num_rounds; ++round, step()) time_graph(trial, timer, round);
  add_times(trial);
}

void CudaBench::time_calls(CudaTrial& trial, StreamTimer& timer, std::int32_t round) {
  const auto wait = [&] { trial.dispatcher.wait(); };
  trial.times.record(BenchPhase::kLayout, round, timer.time([&] { prepare(trial); }, wait));
  trial.times.record(BenchPhase::kDispatch, round, timer.time([&] { dispatch(trial); }, wait));
  trial.times.record(BenchPhase::kCombine, round, timer.time([&] { combine(trial, trial.received); }, wait));
}

void CudaBench::time_round_trips(CudaTrial& trial, StreamTimer& timer, std::int32_t round) {
  const auto wait = [&] { trial.dispatcher.wait(); };
  trial.times.record(BenchPhase::kDispatchWithLayout, round, timer.time([&] { prepare_and_dispatch(trial); }, wait));
  const auto round_trip = [&] {
    prepare_and_dispatch(trial);
    combine(trial, trial.received);
  };
  trial.times.record(BenchPhase::kRoundTrip, round, timer.time(round_trip, wait));
}

void CudaBench::time_graph(CudaTrial& trial, StreamTimer& timer, std::int32_t round) {
  trial.times.record(BenchPhase::kGraphRoundTrip, round,
                     timer.time([&] { trial.graph->launch(rank_->stream.get()); }, [&] { trial.dispatcher.wait(); }));
}

void CudaBench::add_times(const CudaTrial& trial) {
  const BytesOfPhases bytes =
      phase_bytes(DispatchLayout(params_), trial.handle.wait_stats(), trial.dispatcher.wire_bytes(trial.handle));
  collector_.add_phases(trial.name, kPhases, trial.times, bytes);
  if (trial.graph) collector_.add_phases(trial.name, kGraphPhases, trial.times, bytes);
}

/// A round trip with a handle of its own, which lives as long as the graph. Its lease does not: what is timed uses the
/// same buffer, never while the graph runs.
void CudaBench::capture(CudaTrial& trial) {
  trial.received.release();
  trial.graph.emplace(rank_->stream.get(), [&] {
    // The very calls of the round trip that is launched by the host.
    const Received received = dispatch_with_ids(trial.dispatcher);
    trial.graph_handle = received.handle();
    trial.graph_rows = data_of(received);
    combine(trial, received);
  });
  dispatch(trial);
}

PairCalls CudaBench::pair_calls(CudaTrial& trial) {
  return {.group = group_,
          .stream = rank_->stream.get(),
          .dispatcher = trial.dispatcher,
          .put_pair =
              [&] {
                prepare_and_dispatch(trial);
                combine(trial, trial.received);
                return trial.handle;
              },
          .put_requests = [&](std::int32_t num_requests) { put_requests(trial, num_requests); },
          .compute = compute_ ? &*compute_ : nullptr,
          .compute_units = collector_.result().compute_units};
}

void CudaBench::time_host_calls(CudaTrial& trial) {
  if (spec_.num_host_calls == 0) return;
  quiet(trial);
  SlowestRank slowest(group_);
  std::vector<double> times_us;
  const std::string task = fmt::format("timing the host of {}", trial.name);
  const std::int32_t num_rounds = spec_.num_warmups + spec_.num_host_calls;
  for (std::int32_t round = 0; round < num_rounds; ++round) {
    group_.barrier();
    const double begin_us = steady_now_us();
    prepare_and_dispatch(trial);
    wait_for_stream(rank_->stream.get());
    const double time_us = slowest.reduce(steady_now_us() - begin_us);
    if (round >= spec_.num_warmups) times_us.push_back(time_us);
    report({.task = task, .done = round + 1, .total = num_rounds});
  }
  collector_.result().host_calls.push_back(pair_times(trial.name, {.num = spec_.num_host_calls}, times_us));
  quiet(trial);
}

/// Pairs in a row, captured and not. Graphs come and go while all streams are quiet.
void CudaBench::time_pairs(CudaTrial& trial) {
  const PairCalls calls = pair_calls(trial);
  std::string task;
  const PairRuns::OnStep on_step = [&](std::int64_t done, std::int64_t total) {
    report({.task = task, .done = done, .total = total});
  };
  PairRuns runs(calls, spec_, on_step);
  BenchResult& result = collector_.result();
  const auto time_graph = [&](std::int32_t num_pairs, std::string_view when, const auto& run) {
    const PairGraph graph(calls, num_pairs);
    quiet(trial);
    std::vector<double> times_us = run(graph);
    recheck(trial, when, [&] {
      graph.launch();
      return data_of(trial.received);  // of the last pair that was captured
    });
    quiet(trial);
    return times_us;
  };
  if (spec_.num_replays > 0) {
    task = fmt::format("replaying {}", trial.name);
    const auto times_us =
        time_graph(1, "checking the replays of", [&](const PairGraph& graph) { return runs.replays(graph); });
    result.replays.push_back(pair_times(trial.name, {.num = spec_.num_replays, .in_graph = true}, times_us));
  }
  const std::int32_t num_pairs = spec_.num_chained_pairs;
  if (num_pairs == 0) return;
  task = fmt::format("chaining {}", trial.name);
  const auto times_us = time_graph(num_pairs, "checking the captured chain of",
                                   [&](const PairGraph& graph) { return runs.chains_in_graph(graph); });
  result.chains.push_back(pair_times(trial.name, {.num = num_pairs, .in_graph = true}, times_us));
  result.chains.push_back(pair_times(trial.name, {.num = num_pairs}, runs.chains_from_host()));
  recheck(trial, "checking the chain of", [&] {
    for (std::int32_t pair = 0; pair < num_pairs; ++pair) static_cast<void>(calls.put_pair());
    return data_of(trial.received);
  });
  quiet(trial);
}

BenchResult run_cuda_bench(Group& group, const BenchSpec& spec, const RoutingTable& own_table,
                           const BenchProgress& progress) {
  return CudaBench(group, spec, own_table, progress).run();
}

}  // namespace epistle
