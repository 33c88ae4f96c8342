#include "measure/dispatch_bench.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "dispatch/config_check.hpp"
#include "measure/bench_check.hpp"
#include "measure/bench_inputs.hpp"
#include "measure/span_timer.hpp"
#include "topology/affinity.hpp"

namespace epistle {
namespace {

constexpr double kMicrosPerSecond = 1e6;
constexpr std::array<BenchPhase, 4> kPhases = {BenchPhase::kLayout, BenchPhase::kDispatch, BenchPhase::kCombine,
                                               BenchPhase::kRoundTrip};
// Longer descriptions of a difference are cut.
constexpr std::size_t kMismatchBytes = 1024;

/// One rank's share of what a phase moves.
struct PhaseBytes {
  std::int64_t algorithm = 0;
  std::int64_t wire = 0;
  std::int64_t moved = 0;
};

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
  void collect_mismatch(std::string_view dispatcher, const Mismatch& mismatch);
  void time_phases(Dispatcher& dispatcher, Handle& handle);
  void combine(Dispatcher& dispatcher, const Handle& handle);
  void add_result(const Dispatcher& dispatcher, const Handle& handle, BenchPhase phase, std::vector<double> times_us);
  [[nodiscard]] std::array<PhaseBytes, 4> phase_bytes(const Dispatcher& dispatcher, const Handle& handle) const;
  void summarize_load(const Handle& handle);
  void summarize_buffers(const Dispatcher& dispatcher);
  void report(const BenchStep& step) const {
    if (progress_) progress_(step);
  }
  [[nodiscard]] std::int64_t sum_over_ranks(std::int64_t value) const;
  [[nodiscard]] std::int64_t max_over_ranks(std::int64_t value) const;

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
  BenchResult result_;
};

DispatchBench::DispatchBench(Group& group, const BenchSpec& spec, const RoutingTable& own_table,
                             const BenchProgress& progress)
    : group_(group),
      spec_(spec),
      table_(own_table),
      progress_(progress),
      config_(resolve_config(spec.config, group.size())),
      params_(to_layout_params(config_, group.size(), Transport::kDirect)),
      inputs_({.rank = group.rank(),
               .seed = spec.seed,
               .num_tokens = own_table.num_tokens,
               .row_bytes = params_.row_bytes,
               .scale_bytes = params_.scale_bytes,
               .combine_row_bytes = params_.combine_row_bytes,
               .combine_dtype = config_.combine_dtype}) {
  if (spec.expectation != nullptr) check_ = std::make_unique<BenchCheck>(group, *spec.expectation, inputs_);
}

std::int64_t DispatchBench::sum_over_ranks(std::int64_t value) const {
  std::vector<std::int64_t> values(static_cast<std::size_t>(group_.size()));
  group_.all_gather(&value, sizeof(value), values.data());
  std::int64_t sum = 0;
  for (const std::int64_t v : values) sum += v;
  return sum;
}

std::int64_t DispatchBench::max_over_ranks(std::int64_t value) const {
  std::vector<std::int64_t> values(static_cast<std::size_t>(group_.size()));
  group_.all_gather(&value, sizeof(value), values.data());
  return *std::max_element(values.begin(), values.end());
}

BenchResult DispatchBench::run() {
  result_.verified = check_ != nullptr;
  for (const std::string& name : spec_.dispatchers) run_dispatcher(name);
  result_.limit = probe_->limit();
  for (PhaseResult& phase : result_.phases) {
    const double moved_by_all = static_cast<double>(phase.moved_bytes) * group_.size();
    const double bytes_per_s = moved_by_all / (phase.time_us.median / kMicrosPerSecond);
    phase.limit_fraction = result_.limit.bytes_per_s > 0.0 ? bytes_per_s / result_.limit.bytes_per_s : 0.0;
  }
  return std::move(result_);
}

void DispatchBench::run_dispatcher(const std::string& name) {
  const std::string preparing = fmt::format("preparing {}", name);
  report({.task = preparing});
  const std::unique_ptr<Dispatcher> dispatcher = make_dispatcher(name, group_, spec_.config);
  Handle handle = dispatcher->prepare(table_.view());
  if (!probe_) {
    start_limit(handle);
    summarize_load(handle);
  }
  report({.task = preparing});
  first_round_trip(*dispatcher, handle);
  check(*dispatcher, handle, "checking");
  time_phases(*dispatcher, handle);
  last_round_trip(*dispatcher, handle);
  check(*dispatcher, handle, "rechecking");
  summarize_buffers(*dispatcher);
}

void DispatchBench::start_limit(const Handle& handle) {
  report({.task = "copy limit"});
  const std::int64_t row_bytes = params_.row_bytes + params_.scale_bytes;
  const std::int64_t working_set_bytes =
      sum_over_ranks((table_.num_tokens + handle.stats().output_rows) * row_bytes) / group_.size();
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
  collect_mismatch(dispatcher.name(), mismatch);
  result_.verified_bytes += sum_over_ranks(check_->num_bytes(output));
}

/// Collective, whether this rank found a difference or not.
void DispatchBench::collect_mismatch(std::string_view dispatcher, const Mismatch& mismatch) {
  std::array<char, kMismatchBytes> own{};
  if (mismatch) std::strncpy(own.data(), mismatch->c_str(), own.size() - 1);
  std::vector<std::array<char, kMismatchBytes>> all(static_cast<std::size_t>(group_.size()));
  group_.all_gather(own.data(), own.size(), all.data());
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    if (all[rank].front() == '\0') continue;
    result_.verified = false;
    if (result_.mismatch.empty()) result_.mismatch = fmt::format("{}, rank {}: {}", dispatcher, rank, all[rank].data());
  }
}

// ---- Times ----------------------------------------------------------------------------------------------------------

void DispatchBench::time_phases(Dispatcher& dispatcher, Handle& handle) {
  SpanTimer timer(group_);
  std::array<std::vector<double>, kPhases.size()> times_us;
  for (std::vector<double>& samples : times_us) samples.reserve(static_cast<std::size_t>(spec_.num_iterations));
  const auto record = [&](BenchPhase phase, std::int32_t iteration, double time_us) {
    if (iteration >= spec_.num_warmups) times_us[static_cast<std::size_t>(phase)].push_back(time_us);
  };
  const std::int32_t num_rounds = spec_.num_warmups + spec_.num_iterations;
  const std::string task = fmt::format("timing {}", dispatcher.name());
  std::int64_t num_done = 0;
  const auto step = [&] { report({.task = task, .done = ++num_done, .total = std::int64_t{2} * num_rounds}); };
  for (std::int32_t iteration = 0; iteration < num_rounds; ++iteration, step()) {
    probe_->sample();
    record(BenchPhase::kLayout, iteration, timer.time([&] { handle = dispatcher.prepare(table_.view()); }));
    record(BenchPhase::kDispatch, iteration, timer.time([&] { dispatcher.dispatch(handle, inputs_.payload()); }));
    record(BenchPhase::kCombine, iteration, timer.time([&] { combine(dispatcher, handle); }));
  }
  for (std::int32_t iteration = 0; iteration < num_rounds; ++iteration, step()) {
    record(BenchPhase::kRoundTrip, iteration, timer.time([&] {
      handle = dispatcher.prepare(table_.view());
      dispatcher.dispatch(handle, inputs_.payload());
      combine(dispatcher, handle);
    }));
  }
  for (const BenchPhase phase : kPhases) {
    add_result(dispatcher, handle, phase, std::move(times_us[static_cast<std::size_t>(phase)]));
  }
}

std::array<PhaseBytes, 4> DispatchBench::phase_bytes(const Dispatcher& dispatcher, const Handle& handle) const {
  const RoutingStats& stats = handle.stats();
  const WireBytes wire = dispatcher.wire_bytes(handle);
  const std::int64_t row_bytes = params_.row_bytes + params_.scale_bytes;
  const std::int64_t entry_bytes = sizeof(std::int32_t) + sizeof(float);  // an id and a weight
  const PhaseBytes layout{.moved = table_.num_tokens * params_.top_k * entry_bytes +
                                   stats.output_rows * dispatcher.layout().record_bytes()};
  const PhaseBytes dispatch{.algorithm = stats.received_rows * row_bytes,
                            .wire = wire.dispatch,
                            .moved = (table_.num_tokens + stats.output_rows) * row_bytes};
  const PhaseBytes combine{.algorithm = stats.sent_rows * params_.combine_row_bytes,
                           .wire = wire.combine,
                           .moved = (table_.num_tokens + stats.output_rows) * params_.combine_row_bytes};
  const PhaseBytes round_trip{.algorithm = dispatch.algorithm + combine.algorithm,
                              .wire = dispatch.wire + combine.wire,
                              .moved = layout.moved + dispatch.moved + combine.moved};
  return {layout, dispatch, combine, round_trip};
}

void DispatchBench::add_result(const Dispatcher& dispatcher, const Handle& handle, BenchPhase phase,
                               std::vector<double> times_us) {
  const PhaseBytes own_bytes = phase_bytes(dispatcher, handle)[static_cast<std::size_t>(phase)];
  PhaseResult result;
  result.dispatcher = dispatcher.name();
  result.phase = phase;
  result.time_us = summarize(std::move(times_us));
  result.algorithm_bytes = sum_over_ranks(own_bytes.algorithm) / group_.size();
  result.wire_bytes = sum_over_ranks(own_bytes.wire) / group_.size();
  result.moved_bytes = sum_over_ranks(own_bytes.moved) / group_.size();
  result_.phases.push_back(std::move(result));
}

void DispatchBench::summarize_load(const Handle& handle) {
  const RoutingStats& stats = handle.stats();
  std::int64_t own_assignments = 0;
  for (std::int32_t local = 0; local < handle.output().num_local_experts; ++local) {
    own_assignments += handle.output().expert_counts[local];
  }
  const auto max_over_mean = [this](std::int64_t value) {
    const std::int64_t sum = sum_over_ranks(value);
    const std::int64_t max = max_over_ranks(value);
    return sum > 0 ? static_cast<double>(max) * group_.size() / static_cast<double>(sum) : 0.0;
  };
  result_.load = {.rows_max_over_mean = max_over_mean(stats.received_rows),
                  .assignments_max_over_mean = max_over_mean(own_assignments),
                  .max_rows = max_over_ranks(stats.received_rows),
                  .dropped = stats.dropped_in_group,
                  .padding_rows = sum_over_ranks(stats.padding_rows)};
}

void DispatchBench::summarize_buffers(const Dispatcher& dispatcher) {
  const bool as_predicted = dispatcher.resident_bytes() == dispatcher.buffer_bytes();
  result_.dispatchers.push_back({.dispatcher = std::string(dispatcher.name()),
                                 .max_buffer_bytes = max_over_ranks(dispatcher.buffer_bytes()),
                                 .buffers_as_predicted = sum_over_ranks(as_predicted ? 0 : 1) == 0});
}

}  // namespace

std::string_view to_string(BenchPhase phase) noexcept {
  switch (phase) {
    case BenchPhase::kLayout:
      return "layout";
    case BenchPhase::kDispatch:
      return "dispatch";
    case BenchPhase::kCombine:
      return "combine";
    case BenchPhase::kRoundTrip:
      return "round_trip";
  }
  return "unknown";
}

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
