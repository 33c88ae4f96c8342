#include "balance/load_window.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "core/reject.hpp"

namespace epistle::balance {

std::span<const double> LoadSnapshot::loads_of(std::int32_t layer) const {
  const auto width = static_cast<std::size_t>(num_experts);
  return std::span(loads).subspan(static_cast<std::size_t>(layer) * width, width);
}

std::span<const std::int64_t> LoadSnapshot::tokens_of(std::int32_t layer) const {
  const auto width = static_cast<std::size_t>(num_experts);
  return std::span(tokens_total).subspan(static_cast<std::size_t>(layer) * width, width);
}

void LoadSnapshot::merge(const LoadSnapshot& other) {
  if (other.num_layers != num_layers || other.num_experts != num_experts) {
    throw Error(ErrorCode::kShapeMismatch, fmt::format("a snapshot of {} layers with {} experts, expected {} with {}",
                                                       other.num_layers, other.num_experts, num_layers, num_experts));
  }
  for (std::size_t idx = 0; idx < loads.size(); ++idx) loads[idx] += other.loads[idx];
  for (std::size_t idx = 0; idx < tokens_total.size(); ++idx) tokens_total[idx] += other.tokens_total[idx];
}

LoadWindow::LoadWindow(const WindowOptions& options) : options_(options) {
  if (options.num_layers < 1 || options.num_experts < 1 || options.num_buckets < 1) {
    reject(fmt::format("a load window of {} layers, {} experts and {} buckets, expected at least 1 of each",
                       options.num_layers, options.num_experts, options.num_buckets));
  }
  if (options.span.count() < options.num_buckets || options.span_steps < options.num_buckets ||
      options.half_life.count() < 1) {
    reject(
        fmt::format("a load window of {} ms or {} steps in {} buckets with a half life of {} ms, expected at least "
                    "a millisecond and a step for every bucket, and a half life of a millisecond",
                    options.span.count(), options.span_steps, options.num_buckets, options.half_life.count()));
  }
  const std::size_t num_loads =
      static_cast<std::size_t>(options.num_layers) * static_cast<std::size_t>(options.num_experts);
  const std::size_t num_buckets =
      options.kind == WindowKind::kDecayed ? 1 : static_cast<std::size_t>(options.num_buckets);
  for (PhaseLoads& phase : phases_) {
    phase.buckets.resize(num_buckets);
    for (Bucket& bucket : phase.buckets) bucket.loads.assign(num_loads, 0.0);
    phase.tokens_total.assign(num_loads, 0);
    phase.latest = start_;
  }
}

std::size_t LoadWindow::index(std::int32_t layer, std::int32_t expert) const noexcept {
  return static_cast<std::size_t>(layer) * static_cast<std::size_t>(options_.num_experts) +
         static_cast<std::size_t>(expert);
}

void LoadWindow::check_layer(std::int32_t layer) const {
  if (layer < 0 || layer >= options_.num_layers) {
    reject(fmt::format("layer {} of a load window, expected 0 to {}", layer, options_.num_layers - 1));
  }
}

std::int64_t LoadWindow::bucket_number(const PhaseLoads& loads, Clock::time_point now) const {
  switch (options_.kind) {
    case WindowKind::kTime: {
      const auto passed = std::chrono::duration_cast<std::chrono::milliseconds>(std::max(now, loads.latest) - start_);
      return passed.count() * options_.num_buckets / options_.span.count();
    }
    case WindowKind::kSteps:
      return loads.num_steps * options_.num_buckets / options_.span_steps;
    case WindowKind::kDecayed:
      break;
  }
  return 0;
}

double LoadWindow::decay(Clock::duration passed) const {
  const double half_lives = std::chrono::duration<double>(passed) / std::chrono::duration<double>(options_.half_life);
  return std::exp2(-std::max(half_lives, 0.0));
}

bool LoadWindow::is_in_window(const Bucket& bucket, std::int64_t number) const {
  return bucket.number >= 0 && bucket.number > number - static_cast<std::int64_t>(options_.num_buckets);
}

void LoadWindow::add(std::int32_t layer, WorkPhase phase, std::span<const std::int64_t> tokens_per_expert,
                     Clock::time_point now) {
  check_layer(layer);
  if (tokens_per_expert.size() != static_cast<std::size_t>(options_.num_experts)) {
    reject(fmt::format("tokens of {} experts, expected {}", tokens_per_expert.size(), options_.num_experts));
  }
  const std::lock_guard lock(mutex_);
  PhaseLoads& loads = phases_[static_cast<std::size_t>(phase)];
  const std::int64_t number = bucket_number(loads, now);
  Bucket& bucket = loads.buckets[static_cast<std::size_t>(number) % loads.buckets.size()];
  if (bucket.number != number) {
    std::fill(bucket.loads.begin(), bucket.loads.end(), 0.0);
    bucket.number = number;
  }
  if (options_.kind == WindowKind::kDecayed && now > loads.latest) {
    const double factor = decay(now - loads.latest);
    for (double& load : bucket.loads) load *= factor;
  }
  loads.latest = std::max(loads.latest, now);
  const std::size_t first = index(layer, 0);
  for (std::size_t expert = 0; expert < tokens_per_expert.size(); ++expert) {
    bucket.loads[first + expert] += static_cast<double>(tokens_per_expert[expert]);
    loads.tokens_total[first + expert] += tokens_per_expert[expert];
  }
}

void LoadWindow::end_step(WorkPhase phase) {
  const std::lock_guard lock(mutex_);
  ++phases_[static_cast<std::size_t>(phase)].num_steps;
}

LoadSnapshot LoadWindow::snapshot(WorkPhase phase, Clock::time_point now) const {
  const std::lock_guard lock(mutex_);
  const PhaseLoads& loads = phases_[static_cast<std::size_t>(phase)];
  LoadSnapshot snapshot{.num_layers = options_.num_layers,
                        .num_experts = options_.num_experts,
                        .loads = std::vector<double>(loads.tokens_total.size(), 0.0),
                        .tokens_total = loads.tokens_total};
  const std::int64_t number = bucket_number(loads, now);
  const double factor = options_.kind == WindowKind::kDecayed ? decay(now - loads.latest) : 1.0;
  for (const Bucket& bucket : loads.buckets) {
    if (!is_in_window(bucket, number)) continue;
    for (std::size_t idx = 0; idx < bucket.loads.size(); ++idx) snapshot.loads[idx] += bucket.loads[idx] * factor;
  }
  return snapshot;
}

std::vector<std::vector<double>> LoadWindow::samples(std::int32_t layer, WorkPhase phase, Clock::time_point now) const {
  check_layer(layer);
  const std::lock_guard lock(mutex_);
  const PhaseLoads& loads = phases_[static_cast<std::size_t>(phase)];
  const std::int64_t number = bucket_number(loads, now);
  std::vector<const Bucket*> live;
  for (const Bucket& bucket : loads.buckets) {
    if (is_in_window(bucket, number)) live.push_back(&bucket);
  }
  std::sort(live.begin(), live.end(), [](const Bucket* a, const Bucket* b) { return a->number < b->number; });
  std::vector<std::vector<double>> samples;
  for (const Bucket* const bucket : live) {
    const auto first = bucket->loads.begin() + static_cast<std::ptrdiff_t>(index(layer, 0));
    const auto end = first + options_.num_experts;
    if (std::any_of(first, end, [](double load) { return load > 0.0; })) samples.emplace_back(first, end);
  }
  return samples;
}

}  // namespace epistle::balance
