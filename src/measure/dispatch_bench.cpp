#include "measure/dispatch_bench.hpp"

#include <array>
#include <memory>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "dispatch/call/config_check.hpp"
#include "measure/bench_check.hpp"
#include "measure/bench_collector.hpp"
#include "measure/bench_inputs.hpp"
#include "measure/span_timer.hpp"
#include "topology/affinity.hpp"

namespace epistle {
namespace {

constexpr std::array<BenchPhase, 4> kPhases = {BenchPhase::kLayout, BenchPhase::kDispatch, BenchPhase::kCombine,
                                               BenchPhase::kRoundTrip};

class DispatchBench {
 public:
  DispatchBench(Group& group, const BenchSpec& spec, const RoutingTable& own_table, const BenchProgress& progress);

  [[nodiscard]] BenchResult run();

 private:
  void run_dispatcher(const std::string& name);
  void start_limit(const Handle& handle);
  void first_round_trip(Dispatcher& dispatcher, const Handle& handle);
  void last_round_trip(Dispatcher& dispatcher, Handle& handle);
  void check(Dispatcher& dispatcher, const Handle& handle, std::string_view when);
  void time_phases(Dispatcher& dispatcher, Handle& handle);
  void combine(Dispatcher& dispatcher, const Handle& handle);
  void report(const BenchStep& step) const {
    if (progress_) progress_(step);
  }

  Group& group_;
  const BenchSpec& spec_;
  const RoutingTable& table_;
  const BenchProgress& progress_;
  DispatcherConfig config_;
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
      params_(to_layout_params(config_, group.size(), Transport::kDirect)),
      inputs_(make_bench_inputs(group.rank(), spec.seed, own_table.num_tokens, config_, params_)),
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
  const std::unique_ptr<Dispatcher> dispatcher = make_dispatcher(name, group_, spec_.config);
  Handle handle = dispatcher->prepare(table_.view());
  if (!probe_) {
    start_limit(handle);
    const DispatchOutput& output = handle.output();
    collector_.add_load(handle.stats(), {output.expert_counts, static_cast<std::size_t>(output.num_local_experts)});
  }
  report({.task = preparing});
  first_round_trip(*dispatcher, handle);
  check(*dispatcher, handle, "checking");
  time_phases(*dispatcher, handle);
  last_round_trip(*dispatcher, handle);
  check(*dispatcher, handle, "rechecking");
  collector_.add_buffers(*dispatcher);
}

void DispatchBench::start_limit(const Handle& handle) {
  report({.task = "copy limit"});
  const std::int64_t row_bytes = params_.row_bytes + params_.scale_bytes;
  const std::int64_t working_set_bytes =
      collector_.sum_over_ranks((table_.num_tokens + handle.stats().output_rows) * row_bytes) / group_.size();
  probe_.emplace(group_, CopyLimitOptions{.working_set_bytes = working_set_bytes, .num_workers = config_.num_workers});
}

// ---- Verification ---------------------------------------------------------------------------------------------------

/// Everything once, untimed: afterwards the expert outputs are where the timed iterations find them.
void DispatchBench::first_round_trip(Dispatcher& dispatcher, const Handle& handle) {
  DispatchOutput output = dispatcher.dispatch(handle, inputs_.payload());
  if (check_ != nullptr) {
    // The first dispatch told where the rows are; the second one has to write them.
    check_->poison(output);
    group_.barrier();  // nobody sends before all have poisoned
    output = dispatcher.dispatch(handle, inputs_.payload());
  }
  if (spec_.stage_combine) {
    private_outputs_.resize(static_cast<std::size_t>(output.num_rows * params_.combine_row_bytes));
    inputs_.fill_expert_outputs(private_outputs_.data(), output.num_rows);
  } else {
    inputs_.fill_expert_outputs(output.combine_rows, output.num_rows);
  }
  combine(dispatcher, handle);
}

/// Once more, as in the timed iterations: what they did to the dispatcher's state shows here.
void DispatchBench::last_round_trip(Dispatcher& dispatcher, Handle& handle) {
  if (check_ == nullptr) return;
  check_->poison(handle.output());
  group_.barrier();  // nobody sends before all have poisoned
  handle = dispatcher.prepare(table_.view());
  dispatcher.dispatch(handle, inputs_.payload());
  combine(dispatcher, handle);
}

void DispatchBench::combine(Dispatcher& dispatcher, const Handle& handle) {
  dispatcher.combine(handle, spec_.stage_combine ? private_outputs_.data() : handle.output().combine_rows,
                     inputs_.out().data(), static_cast<std::int64_t>(inputs_.out().size()));
}

void DispatchBench::check(Dispatcher& dispatcher, const Handle& handle, std::string_view when) {
  if (check_ == nullptr) return;
  const std::string task = fmt::format("{} {}", when, dispatcher.name());
  const DispatchOutput& output = handle.output();
  const Mismatch mismatch = check_->run(
      output, [&](std::int64_t done, std::int64_t total) { report({.task = task, .done = done, .total = total}); });
  collector_.add_check(dispatcher.name(), mismatch, check_->num_bytes(output));
}

// ---- Times ----------------------------------------------------------------------------------------------------------

void DispatchBench::time_phases(Dispatcher& dispatcher, Handle& handle) {
  SpanTimer timer(group_);
  PhaseTimes times(spec_);
  const std::int32_t num_rounds = spec_.num_warmups + spec_.num_iterations;
  const std::string task = fmt::format("timing {}", dispatcher.name());
  std::int64_t num_done = 0;
  const auto step = [&] { report({.task = task, .done = ++num_done, .total = std::int64_t{2} * num_rounds}); };
  for (std::int32_t iteration = 0; iteration < num_rounds; ++iteration, step()) {
    probe_->sample();
    times.record(BenchPhase::kLayout, iteration, timer.time([&] { handle = dispatcher.prepare(table_.view()); }));
    times.record(BenchPhase::kDispatch, iteration, timer.time([&] { dispatcher.dispatch(handle, inputs_.payload()); }));
    times.record(BenchPhase::kCombine, iteration, timer.time([&] { combine(dispatcher, handle); }));
  }
  for (std::int32_t iteration = 0; iteration < num_rounds; ++iteration, step()) {
    times.record(BenchPhase::kRoundTrip, iteration, timer.time([&] {
      handle = dispatcher.prepare(table_.view());
      dispatcher.dispatch(handle, inputs_.payload());
      combine(dispatcher, handle);
    }));
  }
  collector_.add_phases(dispatcher.name(), kPhases, times,
                        phase_bytes(dispatcher.layout(), handle.stats(), dispatcher.wire_bytes(handle)));
}

}  // namespace

BenchResult run_dispatch_bench(Group& group, const BenchSpec& spec, const RoutingTable& own_table,
                               const BenchProgress& progress) {
  std::optional<ScopedBinding> binding;
  if (spec.bind) {
    binding.emplace(
        BindingShare{.idx = group.rank(), .num_shares = group.size(), .min_units = spec.config.num_workers});
  }
  return DispatchBench(group, spec, own_table, progress).run();
}

}  // namespace epistle
