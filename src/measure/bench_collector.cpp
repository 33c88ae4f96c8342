#include "measure/bench_collector.hpp"

#include <algorithm>
#include <cstring>
#include <string>

#include <fmt/format.h>

namespace epistle {
namespace {

// Longer descriptions of a difference are cut.
constexpr std::size_t kMismatchBytes = 1024;

std::vector<std::int64_t> gather(Group& group, std::int64_t value) {
  std::vector<std::int64_t> values(static_cast<std::size_t>(group.size()));
  group.all_gather(&value, sizeof(value), values.data());
  return values;
}

PhaseBytes operator+(const PhaseBytes& a, const PhaseBytes& b) {
  return {.algorithm = a.algorithm + b.algorithm,
          .wire = a.wire + b.wire,
          .links = {.own = a.links.own + b.links.own,
                    .domain = a.links.domain + b.links.domain,
                    .network = a.links.network + b.links.network},
          .moved = a.moved + b.moved};
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
    case BenchPhase::kDispatchWithLayout:
      return "dispatch+layout";
    case BenchPhase::kGraphRoundTrip:
      return "graph_round_trip";
  }
  return "unknown";
}

BytesOfPhases phase_bytes(const DispatchLayout& layout, const RoutingStats& stats, const WireBytes& wire) {
  const LayoutParams& params = layout.params();
  const std::int64_t row_bytes = params.row_bytes + params.scale_bytes;
  const std::int64_t entry_bytes = sizeof(std::int32_t) + sizeof(float);  // an id and a weight
  const std::int64_t num_rows = stats.num_tokens + stats.output_rows;     // read and written
  const PhaseBytes prepare{
      .links = {.network = wire.header_bytes},
      .moved = stats.num_tokens * params.top_k * entry_bytes + stats.output_rows * layout.record_bytes()};
  const PhaseBytes dispatch{.algorithm = stats.received_rows * row_bytes,
                            .wire = wire.dispatch,
                            .links = wire.dispatch_links,
                            .moved = num_rows * row_bytes};
  const PhaseBytes combine{.algorithm = stats.sent_rows * params.combine_row_bytes,
                           .wire = wire.combine,
                           .links = wire.combine_links,
                           .moved = num_rows * params.combine_row_bytes};
  const PhaseBytes round_trip = prepare + dispatch + combine;
  BytesOfPhases bytes;
  const auto set = [&](BenchPhase phase, const PhaseBytes& value) { bytes[static_cast<std::size_t>(phase)] = value; };
  set(BenchPhase::kLayout, prepare);
  set(BenchPhase::kDispatch, dispatch);
  set(BenchPhase::kCombine, combine);
  set(BenchPhase::kRoundTrip, round_trip);
  set(BenchPhase::kDispatchWithLayout, prepare + dispatch);
  set(BenchPhase::kGraphRoundTrip, round_trip);
  return bytes;
}

PairTimes pair_times(std::string_view dispatcher, PairTimes kind, const std::vector<double>& times_us) {
  kind.dispatcher = dispatcher;
  kind.num_samples = static_cast<std::int64_t>(times_us.size());
  kind.time_us = summarize(times_us);
  kind.samples_us = times_us;
  return kind;
}

Contender contender_of(const BenchSpec& spec, const std::string& dispatcher) {
  return {.name = dispatcher,
          .dispatcher = dispatcher,
          .host = spec.host,
          .cuda = spec.cuda,
          .num_buffers = spec.config.num_buffers};
}

bool means_unavailable(const Error& error) noexcept {
  switch (error.code()) {
    case ErrorCode::kUnsupported:
    case ErrorCode::kNotFound:
    case ErrorCode::kOutOfMemory:
    case ErrorCode::kSystem:
      return true;
    default:
      return false;
  }
}

PhaseTimes::PhaseTimes(const BenchSpec& spec) : num_warmups_(spec.num_warmups) {
  for (std::vector<double>& samples : times_us_) samples.reserve(static_cast<std::size_t>(spec.num_iterations));
}

void PhaseTimes::record(BenchPhase phase, std::int32_t iteration, double time_us) {
  if (iteration >= num_warmups_) times_us_[static_cast<std::size_t>(phase)].push_back(time_us);
}

BenchCollector::BenchCollector(Group& group, bool verifies)
    : group_(group), num_ranks_(group.size() - static_cast<int>(group.masked().size())) {
  result_.verified = verifies;
}

std::int64_t BenchCollector::sum_over_ranks(std::int64_t value) const {
  std::int64_t sum = 0;
  for (const std::int64_t of_rank : gather(group_, value)) sum += of_rank;
  return sum;
}

std::int64_t BenchCollector::max_over_ranks(std::int64_t value) const {
  const std::vector<std::int64_t> values = gather(group_, value);
  return *std::max_element(values.begin(), values.end());
}

void BenchCollector::add_load(const RoutingStats& stats, std::span<const std::int32_t> expert_counts) {
  std::int64_t own_assignments = 0;
  for (const std::int32_t count : expert_counts) own_assignments += count;
  const auto max_over_mean = [this](std::int64_t value) {
    const std::int64_t sum = sum_over_ranks(value);
    const std::int64_t max = max_over_ranks(value);
    return sum > 0 ? static_cast<double>(max) * num_ranks_ / static_cast<double>(sum) : 0.0;
  };
  result_.load = {.rows_max_over_mean = max_over_mean(stats.received_rows),
                  .assignments_max_over_mean = max_over_mean(own_assignments),
                  .max_rows = max_over_ranks(stats.received_rows),
                  .dropped = stats.dropped_in_group,
                  .padding_rows = sum_over_ranks(stats.padding_rows)};
}

void BenchCollector::add_phases(std::string_view dispatcher, std::span<const BenchPhase> phases,
                                const PhaseTimes& times, const BytesOfPhases& own_bytes) {
  for (const BenchPhase phase : phases) {
    const PhaseBytes& bytes = own_bytes[static_cast<std::size_t>(phase)];
    PhaseResult result;
    result.dispatcher = dispatcher;
    result.phase = phase;
    result.time_us = summarize(times.of(phase));
    result.algorithm_bytes = sum_over_ranks(bytes.algorithm) / num_ranks_;
    result.wire_bytes = sum_over_ranks(bytes.wire) / num_ranks_;
    result.link_bytes = {.own = sum_over_ranks(bytes.links.own) / num_ranks_,
                         .domain = sum_over_ranks(bytes.links.domain) / num_ranks_,
                         .network = sum_over_ranks(bytes.links.network) / num_ranks_};
    result.moved_bytes = sum_over_ranks(bytes.moved) / num_ranks_;
    result_.phases.push_back(std::move(result));
  }
}

void BenchCollector::add_check(std::string_view dispatcher, const Mismatch& mismatch, std::int64_t num_bytes) {
  std::array<char, kMismatchBytes> own{};
  if (mismatch) std::strncpy(own.data(), mismatch->c_str(), own.size() - 1);
  std::vector<std::array<char, kMismatchBytes>> all(static_cast<std::size_t>(group_.size()));
  group_.all_gather(own.data(), own.size(), all.data());
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    if (all[rank].front() == '\0') continue;
    result_.verified = false;
    if (result_.mismatch.empty()) result_.mismatch = fmt::format("{}, rank {}: {}", dispatcher, rank, all[rank].data());
  }
  result_.verified_bytes += sum_over_ranks(num_bytes);
}

void BenchCollector::add_buffers(std::string_view name, const Dispatcher& dispatcher) {
  const bool as_predicted = dispatcher.resident_bytes() == dispatcher.shared_bytes();
  result_.dispatchers.push_back({.dispatcher = std::string(name),
                                 .max_buffer_bytes = max_over_ranks(dispatcher.shared_bytes()),
                                 .buffers_as_predicted = sum_over_ranks(as_predicted ? 0 : 1) == 0});
}

}  // namespace epistle
