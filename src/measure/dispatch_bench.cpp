#include "measure/dispatch_bench.hpp"

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
#include "measure/received_data.hpp"
#include "measure/slowest_rank.hpp"
#include "measure/span_timer.hpp"
#include "topology/affinity.hpp"

namespace epistle {
namespace {

constexpr std::array<BenchPhase, 4> kPhases = {BenchPhase::kLayout, BenchPhase::kDispatch, BenchPhase::kCombine,
                                               BenchPhase::kRoundTrip};

/// One dispatcher while it is measured.
struct Trial {
  Dispatcher dispatcher;
  Handle handle = {};
  Received received = {};  ///< the rows of the last dispatch

  [[nodiscard]] std::string_view name() const noexcept { return dispatcher.info().name(); }
};

class DispatchBench {
 public:
  DispatchBench(Group& group, const BenchSpec& spec, const RoutingTable& own_table, const BenchProgress& progress);

  [[nodiscard]] BenchResult run();

 private:
  void run_dispatcher(const std::string& name);
  void start_limit(const Handle& handle);
  void first_round_trip(Trial& trial);
  void poison(Trial& trial);
  void last_round_trip(Trial& trial);
  void check(const Trial& trial, std::string_view when);
  void time_phases(Trial& trial);
  void run_chain(Trial& trial);
  void time_chains(Trial& trial);
  void prepare(Trial& trial) {
    trial.received.release();  // what is free when a routing is prepared can be sent to at once
    trial.handle = trial.dispatcher.prepare({.expert_ids = table_.ids(), .weights = table_.probs()});
  }
  void dispatch(Trial& trial);
  void combine(Trial& trial);
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
  std::optional<CopyProbe> probe_;
  std::unique_ptr<BenchCheck> check_;       ///< null = not verified
  std::vector<std::byte> private_outputs_;  ///< expert outputs, where combine has to copy them
  BenchCollector collector_;
};

DispatchBench::DispatchBench(Group& group, const BenchSpec& spec, const RoutingTable& own_table,
                             const BenchProgress& progress)
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

BenchResult DispatchBench::run() {
  for (const std::string& name : spec_.dispatchers) run_dispatcher(name);
  BenchResult& result = collector_.result();
  result.limit = probe_->limit();
  for (PhaseResult& phase : result.phases) {
    const double moved_by_all = static_cast<double>(phase.moved_bytes) * group_.size();
    const double bytes_per_s = moved_by_all / (phase.time_us.median / kMicrosPerSecond);
    phase.limit_fraction = result.limit.bytes_per_s > 0.0 ? bytes_per_s / result.limit.bytes_per_s : 0.0;
  }
  return std::move(result);
}

void DispatchBench::run_dispatcher(const std::string& name) {
  const std::string preparing = fmt::format("preparing {}", name);
  report({.task = preparing});
  Trial trial{.dispatcher = Dispatcher(group_, name, spec_.config, spec_.host)};
  prepare(trial);
  if (!probe_) {
    start_limit(trial.handle);
    const RowDescription& rows = trial.handle.description();
    collector_.add_load(trial.handle.wait_stats(),
                        {rows.expert_counts, static_cast<std::size_t>(rows.num_local_experts)});
  }
  report({.task = preparing});
  first_round_trip(trial);
  check(trial, "checking");
  time_phases(trial);
  last_round_trip(trial);
  check(trial, "rechecking");
  if (spec_.num_chained_pairs > 0) time_chains(trial);
  collector_.add_buffers(trial.dispatcher);
}

void DispatchBench::start_limit(const Handle& handle) {
  report({.task = "copy limit"});
  const std::int64_t row_bytes = params_.row_bytes + params_.scale_bytes;
  const std::int64_t working_set_bytes =
      collector_.sum_over_ranks((table_.num_tokens + handle.wait_stats().output_rows) * row_bytes) / group_.size();
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

void DispatchBench::combine(Trial& trial) {
  ConstRows rows = trial.received.expert_outputs();
  if (spec_.stage_combine) rows.data = private_outputs_.data();
  trial.dispatcher.combine({.handle = trial.handle, .rows = rows, .out = inputs_.out_rows()});
}

void DispatchBench::check(const Trial& trial, std::string_view when) {
  if (check_ == nullptr) return;
  const std::string task = fmt::format("{} {}", when, trial.name());
  const ReceivedData received = data_of(trial.received);
  const Mismatch mismatch = check_->run(
      received, [&](std::int64_t done, std::int64_t total) { report({.task = task, .done = done, .total = total}); });
  collector_.add_check(trial.name(), mismatch, check_->num_bytes(received));
}

// ---- Times ----------------------------------------------------------------------------------------------------------

void DispatchBench::time_phases(Trial& trial) {
  SpanTimer timer(group_);
  PhaseTimes times(spec_);
  const std::int32_t num_rounds = spec_.num_warmups + spec_.num_iterations;
  const std::string task = fmt::format("timing {}", trial.name());
  std::int64_t num_done = 0;
  const auto step = [&] { report({.task = task, .done = ++num_done, .total = std::int64_t{2} * num_rounds}); };
  for (std::int32_t iteration = 0; iteration < num_rounds; ++iteration, step()) {
    probe_->sample();
    times.record(BenchPhase::kLayout, iteration, timer.time([&] { prepare(trial); }));
    times.record(BenchPhase::kDispatch, iteration, timer.time([&] { dispatch(trial); }));
    times.record(BenchPhase::kCombine, iteration, timer.time([&] { combine(trial); }));
  }
  for (std::int32_t iteration = 0; iteration < num_rounds; ++iteration, step()) {
    times.record(BenchPhase::kRoundTrip, iteration, timer.time([&] {
      prepare(trial);
      dispatch(trial);
      combine(trial);
    }));
  }
  collector_.add_phases(
      trial.name(), kPhases, times,
      phase_bytes(DispatchLayout(params_), trial.handle.wait_stats(), trial.dispatcher.wire_bytes(trial.handle)));
}

// ---- Pairs in a row -------------------------------------------------------------------------------------------------

void DispatchBench::run_chain(Trial& trial) {
  for (std::int32_t pair = 0; pair < spec_.num_chained_pairs; ++pair) {
    trial.received.release();
    trial.received = trial.dispatcher.dispatch({.expert_ids = table_.ids(),
                                                .weights = table_.probs(),
                                                .tokens = inputs_.tokens(),
                                                .scales = inputs_.scales()});
    trial.handle = trial.received.handle();
    combine(trial);
  }
}

void DispatchBench::time_chains(Trial& trial) {
  SlowestRank slowest(group_);
  std::vector<double> times_us;
  times_us.reserve(static_cast<std::size_t>(spec_.num_iterations));
  const std::int32_t num_rounds = spec_.num_warmups + spec_.num_iterations;
  const std::string task = fmt::format("chaining {}", trial.name());
  for (std::int32_t round = 0; round < num_rounds; ++round) {
    group_.barrier();
    const double begin_us = steady_now_us();
    run_chain(trial);
    const double own_us = steady_now_us() - begin_us;
    const double time_us = slowest.reduce(own_us) / spec_.num_chained_pairs;
    if (round >= spec_.num_warmups) times_us.push_back(time_us);
    report({.task = task, .done = round + 1, .total = num_rounds});
  }
  if (check_ != nullptr) {
    poison(trial);
    run_chain(trial);
    check(trial, "checking the chain of");
  }
  collector_.result().chains.push_back(pair_times(trial.name(), {.num = spec_.num_chained_pairs}, times_us));
}

}  // namespace

BenchResult run_dispatch_bench(Group& group, const BenchSpec& spec, const RoutingTable& own_table,
                               const BenchProgress& progress) {
  std::optional<ScopedBinding> binding;
  if (spec.bind) {
    binding.emplace(BindingShare{.idx = group.rank(), .num_shares = group.size(), .min_units = spec.host.num_workers});
  }
  return DispatchBench(group, spec, own_table, progress).run();
}

}  // namespace epistle
