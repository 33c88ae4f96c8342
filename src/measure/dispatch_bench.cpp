#include "measure/dispatch_bench.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <utility>

#include <fmt/format.h>

#include "dispatch/config_check.hpp"
#include "measure/pattern.hpp"
#include "measure/span_timer.hpp"
#include "measure/verify.hpp"

namespace epistle {
namespace {

constexpr double kMicrosPerSecond = 1e6;
constexpr std::byte kPoison{0xa5};
constexpr std::array<BenchPhase, 4> kPhases = {BenchPhase::kLayout, BenchPhase::kDispatch, BenchPhase::kCombine,
                                               BenchPhase::kRoundTrip};
// Fits into one gather slot together with its length.
constexpr std::size_t kMismatchBytes = 1024;

/// One rank's share of what a phase moves.
struct PhaseBytes {
  std::int64_t algorithm = 0;
  std::int64_t wire = 0;
  std::int64_t moved = 0;
};

class DispatchBench {
 public:
  DispatchBench(Group& group, const BenchSpec& spec, const std::vector<RoutingTable>& tables,
                const BenchProgress& progress);

  [[nodiscard]] BenchResult run();

 private:
  void measure_limit(const Handle& handle);
  void run_dispatcher(const std::string& name);
  [[nodiscard]] Mismatch verify(Dispatcher& dispatcher, const Handle& handle);
  void time_phases(Dispatcher& dispatcher, Handle& handle);
  void add_result(const Dispatcher& dispatcher, const Handle& handle, BenchPhase phase, std::vector<double> times_us);
  [[nodiscard]] std::array<PhaseBytes, 4> phase_bytes(const Dispatcher& dispatcher, const Handle& handle) const;
  void summarize_load(const Handle& handle);
  void summarize_buffers(const Dispatcher& dispatcher);
  void collect_mismatch(const std::string& dispatcher, const Mismatch& mismatch);
  void fill_expert_outputs(std::byte* rows, std::int64_t num_rows) const;
  void step();

  [[nodiscard]] RowKey key(RowStream stream, int rank, std::int64_t row) const {
    return {.seed = spec_.seed, .stream = stream, .rank = rank, .row = row};
  }
  [[nodiscard]] std::int64_t sum_over_ranks(std::int64_t value) const;
  [[nodiscard]] std::int64_t max_over_ranks(std::int64_t value) const;
  [[nodiscard]] Payload payload() const {
    return {.rows = rows_.data(), .scales = scales_.empty() ? nullptr : scales_.data(), .num_tokens = own().num_tokens};
  }
  [[nodiscard]] const RoutingTable& own() const { return tables_[static_cast<std::size_t>(group_.rank())]; }

  Group& group_;
  const BenchSpec& spec_;
  const std::vector<RoutingTable>& tables_;
  const BenchProgress& progress_;
  DispatcherConfig config_;
  LayoutParams params_;
  std::unique_ptr<Expectation> expectation_;
  std::vector<std::byte> rows_;
  std::vector<std::byte> scales_;
  std::vector<std::byte> private_outputs_;
  std::vector<std::byte> out_;
  BenchResult result_;
  std::int64_t steps_done_ = 0;
  std::int64_t steps_total_ = 0;
};

DispatchBench::DispatchBench(Group& group, const BenchSpec& spec, const std::vector<RoutingTable>& tables,
                             const BenchProgress& progress)
    : group_(group),
      spec_(spec),
      tables_(tables),
      progress_(progress),
      config_(resolve_config(spec.config, group.size())),
      params_(to_layout_params(config_, group.size(), Transport::kDirect)) {
  const std::int64_t num_tokens = own().num_tokens;
  rows_.resize(static_cast<std::size_t>(num_tokens * params_.row_bytes));
  scales_.resize(static_cast<std::size_t>(num_tokens * params_.scale_bytes));
  for (std::int64_t token = 0; token < num_tokens; ++token) {
    fill_bytes(key(RowStream::kPayload, group.rank(), token), rows_.data() + token * params_.row_bytes,
               params_.row_bytes);
    fill_bytes(key(RowStream::kScales, group.rank(), token), scales_.data() + token * params_.scale_bytes,
               params_.scale_bytes);
  }
  out_.resize(static_cast<std::size_t>(num_tokens * params_.combine_row_bytes));
  const std::int64_t rounds = 2 * (spec.num_iterations + spec.num_warmups);
  steps_total_ = static_cast<std::int64_t>(spec.dispatchers.size()) * (rounds + (spec.verify ? 1 : 0)) + 1;
}

void DispatchBench::step() {
  ++steps_done_;
  if (progress_) progress_(steps_done_, steps_total_);
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
  if (spec_.verify) expectation_ = std::make_unique<Expectation>(config_, tables_);
  result_.verified = spec_.verify;
  for (const std::string& name : spec_.dispatchers) run_dispatcher(name);
  return std::move(result_);
}

void DispatchBench::run_dispatcher(const std::string& name) {
  const std::unique_ptr<Dispatcher> dispatcher = make_dispatcher(name, group_, spec_.config);
  Handle handle = dispatcher->prepare(own().view());
  if (result_.limit.method.empty()) {
    measure_limit(handle);
    summarize_load(handle);
  }
  if (spec_.verify) {
    collect_mismatch(name, verify(*dispatcher, handle));
    step();
  }
  time_phases(*dispatcher, handle);
  summarize_buffers(*dispatcher);
}

void DispatchBench::measure_limit(const Handle& handle) {
  const std::int64_t row_bytes = params_.row_bytes + params_.scale_bytes;
  const std::int64_t working_set_bytes =
      sum_over_ranks((own().num_tokens + handle.stats().output_rows) * row_bytes) / group_.size();
  result_.limit = measure_copy_limit(group_, {.working_set_bytes = working_set_bytes,
                                              .num_workers = config_.num_workers,
                                              .num_iterations = std::max(spec_.num_iterations / 2, 15)});
  step();
}

// ---- Verification ---------------------------------------------------------------------------------------------------

void DispatchBench::fill_expert_outputs(std::byte* rows, std::int64_t num_rows) const {
  for (std::int64_t row = 0; row < num_rows; ++row) {
    fill_values(key(RowStream::kExpertOutput, group_.rank(), row), config_.combine_dtype,
                rows + row * params_.combine_row_bytes, params_.combine_row_bytes);
  }
}

Mismatch DispatchBench::verify(Dispatcher& dispatcher, const Handle& handle) {
  // A first dispatch tells where the rows are; then they are poisoned, so that nothing left over can pass.
  DispatchOutput output = dispatcher.dispatch(handle, payload());
  std::memset(output.rows, static_cast<int>(kPoison), static_cast<std::size_t>(output.num_rows * output.row_bytes));
  if (output.scales != nullptr) {
    std::memset(output.scales, static_cast<int>(kPoison),
                static_cast<std::size_t>(output.num_rows * output.scale_bytes));
  }
  std::fill(out_.begin(), out_.end(), kPoison);
  group_.barrier();  // nobody sends before all have poisoned
  output = dispatcher.dispatch(handle, payload());
  fill_expert_outputs(output.combine_rows, output.num_rows);
  if (spec_.stage_combine) {
    private_outputs_.resize(static_cast<std::size_t>(output.num_rows * params_.combine_row_bytes));
    fill_expert_outputs(private_outputs_.data(), output.num_rows);
  }
  dispatcher.combine(handle, spec_.stage_combine ? private_outputs_.data() : output.combine_rows, out_.data(),
                     static_cast<std::int64_t>(out_.size()));

  const int rank = group_.rank();
  if (Mismatch mismatch = expectation_->check_description(rank, output)) return mismatch;
  const auto source = [this](RowStream stream, std::int64_t num_bytes) {
    return [this, stream, num_bytes](int src_rank, std::int64_t token, std::byte* row) {
      fill_bytes(key(stream, src_rank, token), row, num_bytes);
    };
  };
  if (Mismatch mismatch = expectation_->check_rows(rank, output.rows, output.row_bytes,
                                                   source(RowStream::kPayload, output.row_bytes), "dispatch")) {
    return mismatch;
  }
  if (output.scales != nullptr) {
    if (Mismatch mismatch = expectation_->check_rows(rank, output.scales, output.scale_bytes,
                                                     source(RowStream::kScales, output.scale_bytes), "scales")) {
      return mismatch;
    }
  }
  std::vector<std::byte> row(static_cast<std::size_t>(params_.combine_row_bytes));
  const reference::RowReader reader = [&](int peer, std::int32_t idx, std::vector<float>& values) {
    fill_values(key(RowStream::kExpertOutput, peer, idx), config_.combine_dtype, row.data(), params_.combine_row_bytes);
    values.resize(static_cast<std::size_t>(config_.combine_hidden));
    for (std::int64_t element = 0; element < config_.combine_hidden; ++element) {
      values[static_cast<std::size_t>(element)] = reference::read_element(config_.combine_dtype, row.data(), element);
    }
  };
  result_.verified_bytes += sum_over_ranks(output.num_rows * (output.row_bytes + output.scale_bytes) +
                                           static_cast<std::int64_t>(out_.size()));
  return expectation_->check_combined(rank, reader, config_.apply_weights, out_.data(), "combine");
}

void DispatchBench::collect_mismatch(const std::string& dispatcher, const Mismatch& mismatch) {
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
  const std::byte* expert_outputs = spec_.stage_combine ? private_outputs_.data() : nullptr;
  if (!spec_.verify) {
    const std::int64_t num_rows = handle.output().num_rows;
    fill_expert_outputs(handle.output().combine_rows, num_rows);
    if (spec_.stage_combine) {
      private_outputs_.resize(static_cast<std::size_t>(num_rows * params_.combine_row_bytes));
      fill_expert_outputs(private_outputs_.data(), num_rows);
      expert_outputs = private_outputs_.data();
    }
  }
  const auto out_bytes = static_cast<std::int64_t>(out_.size());
  const auto combine = [&] {
    dispatcher.combine(handle, expert_outputs != nullptr ? expert_outputs : handle.output().combine_rows, out_.data(),
                       out_bytes);
  };
  const std::int32_t num_rounds = spec_.num_warmups + spec_.num_iterations;
  for (std::int32_t iteration = 0; iteration < num_rounds; ++iteration, step()) {
    record(BenchPhase::kLayout, iteration, timer.time([&] { handle = dispatcher.prepare(own().view()); }));
    record(BenchPhase::kDispatch, iteration, timer.time([&] { dispatcher.dispatch(handle, payload()); }));
    record(BenchPhase::kCombine, iteration, timer.time(combine));
  }
  for (std::int32_t iteration = 0; iteration < num_rounds; ++iteration, step()) {
    record(BenchPhase::kRoundTrip, iteration, timer.time([&] {
      handle = dispatcher.prepare(own().view());
      dispatcher.dispatch(handle, payload());
      combine();
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
  const PhaseBytes layout{.moved = own().num_tokens * params_.top_k * entry_bytes +
                                   stats.output_rows * dispatcher.layout().record_bytes()};
  const PhaseBytes dispatch{.algorithm = stats.received_rows * row_bytes,
                            .wire = wire.dispatch,
                            .moved = (own().num_tokens + stats.output_rows) * row_bytes};
  const PhaseBytes combine{.algorithm = stats.sent_rows * params_.combine_row_bytes,
                           .wire = wire.combine,
                           .moved = (own().num_tokens + stats.output_rows) * params_.combine_row_bytes};
  const PhaseBytes round_trip{.algorithm = dispatch.algorithm + combine.algorithm,
                              .wire = dispatch.wire + combine.wire,
                              .moved = layout.moved + dispatch.moved + combine.moved};
  return {layout, dispatch, combine, round_trip};
}

void DispatchBench::add_result(const Dispatcher& dispatcher, const Handle& handle, BenchPhase phase,
                               std::vector<double> times_us) {
  const PhaseBytes own_bytes = phase_bytes(dispatcher, handle)[static_cast<std::size_t>(phase)];
  const std::int64_t moved_by_all = sum_over_ranks(own_bytes.moved);
  PhaseResult result;
  result.dispatcher = dispatcher.name();
  result.phase = phase;
  result.time_us = summarize(std::move(times_us));
  result.algorithm_bytes = sum_over_ranks(own_bytes.algorithm) / group_.size();
  result.wire_bytes = sum_over_ranks(own_bytes.wire) / group_.size();
  result.moved_bytes = moved_by_all / group_.size();
  const double bytes_per_s = static_cast<double>(moved_by_all) / (result.time_us.median / kMicrosPerSecond);
  result.limit_fraction = bytes_per_s / result_.limit.bytes_per_s;
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

BenchResult run_dispatch_bench(Group& group, const BenchSpec& spec, const std::vector<RoutingTable>& tables,
                               const BenchProgress& progress) {
  return DispatchBench(group, spec, tables, progress).run();
}

}  // namespace epistle
