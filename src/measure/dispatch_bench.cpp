#include "measure/dispatch_bench.hpp"

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "epistle/dispatcher.hpp"

#include "dispatch/call/resolved_config.hpp"
#include "measure/bench_check.hpp"
#include "measure/bench_collector.hpp"
#include "measure/bench_inputs.hpp"
#include "measure/clock.hpp"
#include "measure/compute_load.hpp"
#include "measure/network_limit.hpp"
#include "measure/received_data.hpp"
#include "measure/slowest_rank.hpp"
#include "measure/span_timer.hpp"
#include "measure/statistics.hpp"
#include "topology/affinity.hpp"

namespace epistle {
namespace {

constexpr std::array<BenchPhase, 4> kPhases = {BenchPhase::kLayout, BenchPhase::kDispatch, BenchPhase::kCombine,
                                               BenchPhase::kRoundTrip};

/// One dispatcher while it is measured.
struct Trial {
  std::string name;
  Dispatcher dispatcher;
  PhaseTimes times;
  std::vector<double> chain_us = {};
  Handle handle = {};
  Received received = {};                ///< the rows of the last dispatch
  std::vector<Received> in_flight = {};  ///< of the requests before it, which are under way with it
};

class DispatchBench {
 public:
  DispatchBench(Group& group, const BenchSpec& spec, const RoutingTable& own_table, const BenchProgress& progress);

  [[nodiscard]] BenchResult run();

 private:
  void run_alone(const Contender& contender);
  void run_in_turns();
  [[nodiscard]] Trial start(const Contender& contender);
  void bind(std::optional<ScopedBinding>& binding, const Contender& contender) const;
  void start_limit(const Handle& handle);
  void first_round_trip(Trial& trial);
  void fill_other_buffers(Trial& trial, std::int32_t num_buffers);
  void poison(Trial& trial);
  void last_round_trip(Trial& trial);
  void check(const Trial& trial, std::string_view when);
  void time_calls(Trial& trial, std::int32_t round);
  void time_round_trip(Trial& trial, std::int32_t round);
  void run_chain(Trial& trial);
  void put_requests(Trial& trial, std::int32_t num_requests);
  void measure_compute(Trial& first);
  void time_chain(Trial& trial, std::int32_t round);
  void check_chain(Trial& trial);
  void add_times(const Trial& trial);
  /// One step for every round; `turns` steps in each.
  template <typename Step>
  void for_each_round(const std::string& task, std::int64_t turns, const Step& step) {
    const std::int64_t num_rounds = spec_.num_warmups + spec_.num_iterations;
    std::int64_t num_done = 0;
    for (std::int32_t round = 0; round < num_rounds; ++round) {
      for (std::int64_t turn = 0; turn < turns; ++turn) {
        step(round, turn);
        report({.task = task, .done = ++num_done, .total = num_rounds * turns});
      }
    }
  }
  void prepare(Trial& trial) {
    trial.received.release();  // what is free when a routing is prepared can be sent to at once
    trial.handle = trial.dispatcher.prepare({.expert_ids = table_.ids(), .weights = table_.probs()});
  }
  void dispatch(Trial& trial);
  void combine(Trial& trial);
  [[nodiscard]] ConstRows outputs_of(const Received& received) const;
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
  SpanTimer timer_;
  SlowestRank slowest_;
  std::optional<CopyProbe> probe_;
  std::unique_ptr<BenchCheck> check_;       ///< null = not verified
  std::vector<std::byte> private_outputs_;  ///< expert outputs, where combine has to copy them
  BenchCollector collector_;
  std::optional<ComputeLoad> compute_;  ///< where work runs beside chains
  std::int64_t compute_units_ = 0;      ///< for each pair
};

DispatchBench::DispatchBench(Group& group, const BenchSpec& spec, const RoutingTable& own_table,
                             const BenchProgress& progress)
    : group_(group),
      spec_(spec),
      table_(own_table),
      progress_(progress),
      config_(resolve_config(spec.config, group.size(),
                             spec.device == Device::kCuda ? group.gpu_domain_size() : group.domain_size())),
      params_(to_layout_params(config_, group.size())),
      inputs_({.rank = group.rank(), .seed = spec.seed, .num_tokens = own_table.num_tokens, .config = config_}),
      timer_(group),
      slowest_(group),
      collector_(group, spec.expectation != nullptr) {
  if (spec.expectation != nullptr) check_ = std::make_unique<BenchCheck>(group, *spec.expectation, inputs_);
}

BenchResult DispatchBench::run() {
  if (spec_.contenders.empty()) {
    for (const std::string& name : spec_.dispatchers) run_alone(contender_of(spec_, name));
  } else {
    run_in_turns();
  }
  BenchResult& result = collector_.result();
  result.limit = probe_->limit();
  if (crosses_network(group_)) {
    report({.task = "network limit"});
    add_network_limit(group_, result);
  }
  for (PhaseResult& phase : result.phases) {
    const double moved_by_all = static_cast<double>(phase.moved_bytes) * collector_.num_ranks();
    const double bytes_per_s = moved_by_all / (phase.time_us.median / kMicrosPerSecond);
    phase.limit_fraction = result.limit.bytes_per_s > 0.0 ? bytes_per_s / result.limit.bytes_per_s : 0.0;
  }
  return std::move(result);
}

void DispatchBench::run_alone(const Contender& contender) {
  Trial trial = start(contender);
  const std::string timing = fmt::format("timing {}", trial.name);
  for_each_round(timing, 1, [&](std::int32_t round, std::int64_t /*turn*/) {
    probe_->sample();
    time_calls(trial, round);
  });
  for_each_round(timing, 1, [&](std::int32_t round, std::int64_t /*turn*/) { time_round_trip(trial, round); });
  last_round_trip(trial);
  check(trial, "rechecking");
  if (spec_.num_chained_pairs > 0) {
    for_each_round(fmt::format("chaining {}", trial.name), 1,
                   [&](std::int32_t round, std::int64_t /*turn*/) { time_chain(trial, round); });
    check_chain(trial);
  }
  add_times(trial);
}

void DispatchBench::run_in_turns() {
  std::vector<Trial> trials;
  std::vector<const Contender*> contenders;
  for (const Contender& contender : spec_.contenders) {
    std::optional<ScopedBinding> binding;
    bind(binding, contender);
    try {
      trials.push_back(start(contender));
      contenders.push_back(&contender);
    } catch (const Error& error) {
      if (!means_unavailable(error)) throw;
      collector_.result().unavailable.push_back({.name = contender.name, .reason = error.what()});
    }
  }
  if (trials.empty()) {
    const Unavailable& first = collector_.result().unavailable.front();
    throw Error(ErrorCode::kUnsupported, fmt::format("{} is not available: {}", first.name, first.reason));
  }
  if (spec_.compute_beside) {
    std::optional<ScopedBinding> binding;
    bind(binding, *contenders.front());
    measure_compute(trials.front());
  }
  const std::size_t num_trials = trials.size();
  for_each_round("taking turns", std::ssize(trials), [&](std::int32_t round, std::int64_t turn) {
    if (turn == 0) probe_->sample();
    const std::size_t idx = static_cast<std::size_t>(round + turn) % num_trials;
    std::optional<ScopedBinding> binding;
    bind(binding, *contenders[idx]);
    time_calls(trials[idx], round);
    time_round_trip(trials[idx], round);
    if (spec_.num_chained_pairs > 0) time_chain(trials[idx], round);
  });
  for (Trial& trial : trials) {
    last_round_trip(trial);
    check(trial, "rechecking");
    if (spec_.num_chained_pairs > 0) check_chain(trial);
    add_times(trial);
    collector_.result().dispatchers.back().device_bytes = collector_.sum_over_ranks(trial.dispatcher.resident_bytes());
  }
}

/// As a run of this contender alone would be bound.
void DispatchBench::bind(std::optional<ScopedBinding>& binding, const Contender& contender) const {
  if (!spec_.bind) return;
  binding.emplace(
      BindingShare{.idx = group_.rank(), .num_shares = group_.size(), .min_units = contender.host.num_workers});
}

/// A dispatcher that has moved rows once, verified.
Trial DispatchBench::start(const Contender& contender) {
  const std::string preparing = fmt::format("preparing {}", contender.name);
  report({.task = preparing});
  DispatcherConfig config = spec_.config;
  config.num_buffers = num_buffers_of(contender, spec_);
  config.max_handles += spec_.num_in_flight;
  Trial trial{.name = contender.name,
              .dispatcher = Dispatcher(group_, contender.dispatcher, config, contender.host),
              .times = PhaseTimes(spec_)};
  prepare(trial);
  if (!probe_) {
    start_limit(trial.handle);
    const RowDescription& rows = trial.handle.description();
    collector_.add_load(trial.handle.wait_stats(),
                        {rows.expert_counts, static_cast<std::size_t>(rows.num_local_experts)});
  }
  report({.task = preparing});
  first_round_trip(trial);
  if (!spec_.stage_combine) fill_other_buffers(trial, config.num_buffers);
  check(trial, "checking");
  return trial;
}

void DispatchBench::start_limit(const Handle& handle) {
  report({.task = "copy limit"});
  const std::int64_t row_bytes = params_.row_bytes + params_.scale_bytes;
  const std::int64_t working_set_bytes =
      collector_.sum_over_ranks((table_.num_tokens + handle.wait_stats().output_rows) * row_bytes) /
      collector_.num_ranks();
  probe_.emplace(group_,
                 CopyLimitOptions{.working_set_bytes = working_set_bytes, .num_workers = spec_.host.num_workers});
}

// ---- Verification ---------------------------------------------------------------------------------------------------

/// Everything once, untimed: afterwards the expert outputs are where the timed iterations find them.
void DispatchBench::first_round_trip(Trial& trial) {
  dispatch(trial);
  if (check_ != nullptr) {
    // The first dispatch told where the rows are; the second one has to write them.
    poison(trial);
    dispatch(trial);
  }
  const std::int64_t num_rows = trial.received.num_rows();
  if (spec_.stage_combine) {
    private_outputs_.resize(static_cast<std::size_t>(num_rows * params_.combine_row_bytes));
    inputs_.fill_expert_outputs(private_outputs_.data(), num_rows);
  } else {
    inputs_.fill_expert_outputs(static_cast<std::byte*>(trial.received.expert_outputs().data), num_rows);
  }
  combine(trial);
}

/// Expert outputs into the buffers that the first round trip did not take: any of them may be the next.
void DispatchBench::fill_other_buffers(Trial& trial, std::int32_t num_buffers) {
  for (std::int32_t other = 1; other < num_buffers; ++other) {
    trial.in_flight.push_back(std::move(trial.received));
    dispatch(trial);
    inputs_.fill_expert_outputs(static_cast<std::byte*>(trial.received.expert_outputs().data),
                                trial.received.num_rows());
  }
  trial.in_flight.clear();
}

/// Collective: overwrites what the calls that follow have to write, on all ranks before any of them sends.
void DispatchBench::poison(Trial& trial) {
  check_->poison(data_of(trial.received));
  group_.barrier();
}

/// Once more, as in the timed iterations: what they did to the dispatcher's state shows here.
void DispatchBench::last_round_trip(Trial& trial) {
  if (check_ == nullptr) return;
  poison(trial);
  prepare(trial);
  dispatch(trial);
  combine(trial);
}

void DispatchBench::dispatch(Trial& trial) {
  trial.received.release();
  trial.received =
      trial.dispatcher.dispatch({.handle = trial.handle, .tokens = inputs_.tokens(), .scales = inputs_.scales()});
}

ConstRows DispatchBench::outputs_of(const Received& received) const {
  ConstRows rows = received.expert_outputs();
  if (spec_.stage_combine) rows.data = private_outputs_.data();
  return rows;
}

void DispatchBench::combine(Trial& trial) {
  trial.dispatcher.combine({.handle = trial.handle, .rows = outputs_of(trial.received), .out = inputs_.out_rows()});
}

void DispatchBench::check(const Trial& trial, std::string_view when) {
  if (check_ == nullptr) return;
  const std::string task = fmt::format("{} {}", when, trial.name);
  const ReceivedData received = data_of(trial.received);
  const Mismatch mismatch = check_->run(
      received, [&](std::int64_t done, std::int64_t total) { report({.task = task, .done = done, .total = total}); });
  collector_.add_check(trial.name, mismatch, check_->num_bytes(received));
}

// ---- Times ----------------------------------------------------------------------------------------------------------

void DispatchBench::time_calls(Trial& trial, std::int32_t round) {
  trial.times.record(BenchPhase::kLayout, round, timer_.time([&] { prepare(trial); }));
  trial.times.record(BenchPhase::kDispatch, round, timer_.time([&] { dispatch(trial); }));
  trial.times.record(BenchPhase::kCombine, round, timer_.time([&] { combine(trial); }));
}

void DispatchBench::time_round_trip(Trial& trial, std::int32_t round) {
  trial.times.record(BenchPhase::kRoundTrip, round, timer_.time([&] {
    prepare(trial);
    dispatch(trial);
    combine(trial);
  }));
}

void DispatchBench::add_times(const Trial& trial) {
  collector_.add_phases(
      trial.name, kPhases, trial.times,
      phase_bytes(DispatchLayout(params_), trial.handle.wait_stats(), trial.dispatcher.wire_bytes(trial.handle)));
  if (spec_.num_chained_pairs > 0) {
    collector_.result().chains.push_back(pair_times(trial.name, {.num = spec_.num_chained_pairs}, trial.chain_us));
  }
  collector_.add_buffers(trial.name, trial.dispatcher);
}

// ---- Pairs in a row -------------------------------------------------------------------------------------------------

void DispatchBench::run_chain(Trial& trial) {
  for (std::int32_t pair = 0; pair < spec_.num_chained_pairs; pair += spec_.num_in_flight) {
    put_requests(trial, std::min(spec_.num_in_flight, spec_.num_chained_pairs - pair));
  }
}

/// Dispatches all of them before the first is combined. What the last one received stays.
void DispatchBench::put_requests(Trial& trial, std::int32_t num_requests) {
  trial.received.release();
  for (std::int32_t request = 0; request < num_requests; ++request) {
    if (request > 0) trial.in_flight.push_back(std::move(trial.received));
    trial.received = trial.dispatcher.dispatch({.expert_ids = table_.ids(),
                                                .weights = table_.probs(),
                                                .tokens = inputs_.tokens(),
                                                .scales = inputs_.scales()});
    trial.handle = trial.received.handle();
  }
  for (Received& earlier : trial.in_flight) {
    trial.dispatcher.combine({.handle = earlier.handle(), .rows = outputs_of(earlier), .out = inputs_.out_rows()});
  }
  trial.in_flight.clear();
  combine(trial);
}

/// Collective: how much work goes beside each pair, from what the first contender's chain and the work take alone.
void DispatchBench::measure_compute(Trial& first) {
  constexpr int kSamples = 15;  // short ones, of which some have the processors to themselves
  constexpr std::int64_t kUnits = 16;
  report({.task = "work beside the calls"});
  compute_.emplace();
  compute_units_ = spec_.compute_units;
  BenchResult& result = collector_.result();
  if (compute_units_ == 0) {
    std::vector<double> unit_us;
    std::vector<double> pair_us;
    for (int sample = 0; sample < kSamples; ++sample) {
      group_.barrier();
      double begin_us = steady_now_us();
      compute_->start(kUnits);
      compute_->wait();
      unit_us.push_back(slowest_.reduce(steady_now_us() - begin_us) / kUnits);
      group_.barrier();
      begin_us = steady_now_us();
      run_chain(first);
      pair_us.push_back(slowest_.reduce(steady_now_us() - begin_us) / spec_.num_chained_pairs);
    }
    // The least: what else the machine does only adds to it.
    result.compute_unit_us = summarize(unit_us).min;
    compute_units_ = units_per_pair(summarize(pair_us).min, result.compute_unit_us);
  }
  result.compute_units = compute_units_;
}

void DispatchBench::time_chain(Trial& trial, std::int32_t round) {
  group_.barrier();
  const double begin_us = steady_now_us();
  if (compute_) compute_->start(compute_units_ * spec_.num_chained_pairs);
  run_chain(trial);
  if (compute_) compute_->wait();
  const double own_us = steady_now_us() - begin_us;
  const double time_us = slowest_.reduce(own_us) / spec_.num_chained_pairs;
  if (round >= spec_.num_warmups) trial.chain_us.push_back(time_us);
}

void DispatchBench::check_chain(Trial& trial) {
  if (check_ == nullptr) return;
  poison(trial);
  run_chain(trial);
  check(trial, "checking the chain of");
}

}  // namespace

BenchResult run_dispatch_bench(Group& group, const BenchSpec& spec, const RoutingTable& own_table,
                               const BenchProgress& progress) {
  std::optional<ScopedBinding> binding;
  if (spec.bind && spec.contenders.empty()) {
    binding.emplace(BindingShare{.idx = group.rank(), .num_shares = group.size(), .min_units = spec.host.num_workers});
  }
  return DispatchBench(group, spec, own_table, progress).run();
}

}  // namespace epistle
